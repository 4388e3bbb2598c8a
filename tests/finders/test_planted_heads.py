"""Heads that were written into a model by hand are the ones that finders name."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.finders import (
    find_hallucination_heads,
    find_image_heads,
    find_localisation_heads,
    find_prompt_heads,
)
from eah_interp.finders.localisation_heads import (
    choose_heads,
    label_pieces,
    measure_entropy,
)
from eah_interp.lvlm.without_images import drop_images
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.attribution.planted import COPIES, build_planted

D_HEAD = 8
PLANTED = (1, 2)
"""Layer and head."""

WORDS = (" cat", " dog", " boat", " tree")
IMAGES = [random_image(seed) for seed in range(6)]
TOLD = ["cat", "dog", "boat", "cat", "dog", "boat"]
TRUE = ["dog", "boat", "cat", "tree", "tree", "tree"]
PROMPTS = [f"is there a {word} ?" for word in TOLD]


def spell(processor, word):
    return processor.tokenizer(word, add_special_tokens=False)["input_ids"][-1]


def silence(hf_model):
    """Let attention be even, and let neither heads nor MLPs write anything."""
    decoder = hf_model.model.language_model
    for block in decoder.layers:
        block.mlp.down_proj.weight.zero_()
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()
        block.input_layernorm.weight.fill_(1)
    return decoder


def build_follower():
    """Build a LLaVA in which one head copies the prompt's noun to the answer.

    Each noun has a direction of its own in the stream, which no other word and no
    image has. The head reads these, and writes each noun's unembedding. Another head
    of the layer reads the same, and writes a word that nobody asks about.
    """
    hf_model = tiny_lvlm("llava", n_layers=3, n_heads=4, d_head=D_HEAD)
    processor = tiny_processor("llava")
    layer, head = PLANTED
    with torch.no_grad():
        decoder = silence(hf_model)
        n_words = len(WORDS)
        decoder.embed_tokens.weight[:, :n_words] = 0
        projector = hf_model.model.multi_modal_projector
        projector.linear_2.weight[:n_words] = 0
        projector.linear_2.bias[:n_words] = 0
        hf_model.lm_head.weight[:, :n_words] = 0
        attention = decoder.layers[layer].self_attn
        attention.v_proj.weight.zero_()
        start = D_HEAD * head
        for index, word in enumerate(WORDS):
            token = spell(processor, word)
            decoder.embed_tokens.weight[token, index] = 20
            attention.v_proj.weight[start + index, index] = 1
            attention.v_proj.weight[index, index] = 1  # the other head, 0
            out = hf_model.lm_head.weight[token]
            attention.o_proj.weight[:, start + index] = 3 * out / out.norm()
        other = hf_model.lm_head.weight[spell(processor, " image")]
        attention.o_proj.weight[:, 0] = other / other.norm()
    return eah.wrap(hf_model, processor)


@pytest.fixture(scope="module")
def follower():
    return build_follower()


@pytest.fixture(scope="module")
def followed(follower):
    return find_prompt_heads(follower, IMAGES, PROMPTS, told=TOLD, true=TRUE)


def test_a_head_that_follows_the_prompt_is_named(followed):
    assert followed.top(1).heads == (PLANTED,)
    table = followed.frame()
    first = table.iloc[0]
    assert first["name"] == "L1H2"
    assert first["low"] > 0
    assert first["cured"] > 0.5
    assert table["score"].iloc[1] < first["score"] / 10
    assert table["p"].iloc[0] < 0.05  # 1 of 64 signs
    assert followed.significant() == ("L1H2",)


def test_a_score_is_what_an_ablation_changes_of_the_margin(follower, followed):
    """By a run of each prompt under `Ablation`, which has an oracle of its own."""
    told, true = (
        torch.tensor([spell(follower.processor, f" {word}") for word in words])
        for words in (TOLD, TRUE)
    )
    encoding = follower.encode(IMAGES, PROMPTS)

    def margins(settings):
        with torch.no_grad(), follower.trace(**encoding):
            if settings is not None:
                eah.intervene(follower, settings)
            logits = follower.output.logits.save()
        rows = torch.arange(len(IMAGES))
        return logits[rows, -1, told] - logits[rows, -1, true]

    before = margins(None)
    torch.testing.assert_close(followed.before, before, rtol=1e-4, atol=1e-4)
    for layer, head in (PLANTED, (1, 0), (0, 3)):
        settings = eah.Ablation(heads=((layer, head),), how="mean")
        fall = before - margins(settings)
        torch.testing.assert_close(
            followed.scores[:, layer, head], fall, rtol=1e-3, atol=1e-4
        )


def test_the_words_of_a_false_prompt_are_checked(as_users_run_it, follower):
    def ask(**words):
        find_prompt_heads(follower, IMAGES[:2], PROMPTS[:2], **words)

    with pytest.raises(InputError, match="told must be a word for each of 2 items"):
        ask(told=["cat"], true=["dog", "boat"])
    with pytest.raises(InputError, match="item 1 was told 'cat', which is true of it"):
        ask(told=["dog", "cat"], true=["boat", "cat"])


def test_a_head_that_alone_reads_the_image_is_named():
    model = build_planted()
    layer, head = COPIES
    with torch.no_grad():
        # What all other heads mix is nothing, with the image or without.
        for index, block in enumerate(model._module.model.language_model.layers):
            own = block.self_attn.v_proj.weight[D_HEAD * head : D_HEAD * (head + 1)]
            kept = own.clone()
            block.self_attn.v_proj.weight.zero_()
            if index == layer:
                block.self_attn.v_proj.weight[D_HEAD * head : D_HEAD * (head + 1)] = (
                    kept
                )
    found = find_image_heads(model, IMAGES, PROMPTS, batch_size=4)
    assert found.top(1).heads == (COPIES,)
    assert found.mean.flatten().sort().values[-2] < found.mean.max() / 100
    assert found.significant() == (f"L{layer}H{head}",)
    assert found.stability().estimate == pytest.approx(1.0, abs=0.5)


def test_a_divergence_is_of_the_last_token_with_and_without_the_image():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    found = find_image_heads(model, IMAGES[:3], PROMPTS[:3], batch_size=2)
    seen = model.encode(IMAGES[:3], PROMPTS[:3])
    outputs = []
    for encoding in (seen, drop_images(model, seen)):
        with torch.no_grad(), model.trace(**encoding):
            heads = torch.stack([model.heads_output[n][:, :, -1] for n in range(3)], 1)
            heads = heads.save()
        outputs.append(heads)
    expected = (outputs[0] - outputs[1]).pow(2).sum(-1).sqrt()
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-3)


def test_a_head_that_speaks_for_absent_objects_is_named(follower):
    """The follower raises the prompt's noun, and nothing else: here, what is absent."""
    found = find_hallucination_heads(
        follower,
        IMAGES,
        PROMPTS,
        objects=[list(pair) for pair in zip(TOLD, TRUE, strict=True)],
        truth=[[word] for word in TRUE],
    )
    assert found.top(1).heads == (PLANTED,)
    assert found.group.tolist() == [True, False] * 6
    assert found.significant() == ("L1H2",)
    present = find_hallucination_heads(
        follower,
        IMAGES,
        PROMPTS,
        objects=[list(pair) for pair in zip(TOLD, TRUE, strict=True)],
        truth=[[word] for word in TOLD],
    )
    assert present.significant() == ()


def test_layers_may_be_chosen(follower, followed):
    words = {"told": TOLD[:2], "true": TRUE[:2]}
    some = find_prompt_heads(follower, IMAGES[:2], PROMPTS[:2], **words, layers=(1, 2))
    assert some.layers == (1, 2)
    expected = followed.scores[:2, 1:]
    torch.testing.assert_close(some.scores, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SettingsError, match="layer"):
        find_prompt_heads(follower, IMAGES[:2], PROMPTS[:2], **words, layers=(7,))


def test_objects_of_one_kind_are_refused(follower):
    with pytest.raises(InputError, match="of 2 objects 0 are absent"):
        find_hallucination_heads(
            follower, IMAGES[:2], objects=["cat"], truth=[["cat"], ["cat"]]
        )


# ---- Localisation: what is chosen, by hand.


def slow_entropy(grid):
    """Measure the entropy of pieces by a flood fill."""
    height, width = grid.shape
    above = (grid - grid.mean()).clamp(min=0)
    left = {(r, c) for r in range(height) for c in range(width) if above[r, c] > 1e-12}
    masses = []
    while left:
        pending, mass = [left.pop()], 0.0
        while pending:
            r, c = pending.pop()
            mass += float(above[r, c])
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            pending += near
        masses.append(mass)
    total = torch.tensor(masses, dtype=torch.float64) / sum(masses)
    return float(-(total * total.log()).sum())


def test_spatial_entropy_is_that_of_a_flood_fill():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(40, 6, 7, generator=generator, dtype=torch.float64) ** 4
    entropy, _ = measure_entropy(maps)
    expected = torch.tensor([slow_entropy(grid) for grid in maps]).double()
    torch.testing.assert_close(entropy, expected)
    assert label_pieces(torch.zeros(2, 3, 3).bool()).tolist() == [[[0] * 3] * 3] * 2


def test_heads_of_a_large_share_in_one_piece_are_chosen():
    maps = torch.full((5, 4, 4), 0.001)
    maps[0, 1, 1] = 0.8  # in one place
    maps[1, 1, 1] = maps[1, 3, 3] = 0.4  # in two
    maps[2, 3] = 0.2  # the bottom row
    maps[3, 0, 0] = 0.002  # in one place, but hardly at the image
    share = maps.sum((1, 2))
    chosen = choose_heads(share, maps, chosen=1)
    assert chosen.tolist() == [True, False, False, False, False]
    assert choose_heads(share, maps, chosen=3).tolist()[2] is False


def test_even_attention_marks_no_place():
    hf_model = tiny_lvlm("llava", n_layers=3, n_heads=4, d_head=D_HEAD)
    with torch.no_grad():
        silence(hf_model)
    model = eah.wrap(hf_model, tiny_processor("llava"))
    found = find_localisation_heads(model, IMAGES, PROMPTS)
    assert float(found.scores.sum()) == 0
    assert found.significant() == ()


def test_maps_are_the_last_row_of_the_patterns_by_patch():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    encoding = model.encode(IMAGES[:2], PROMPTS[:2])
    with torch.no_grad(), model.trace(**encoding):
        rows = [model.attention_probabilities[n][:, :, -1] for n in range(3)]
        patterns = torch.stack(rows, 1).save()
    expected = []
    for item, (span,) in enumerate(model.spans(encoding)):
        grid = patterns[item][..., torch.tensor(span.parts[0].columns)].flatten(0, 1)
        share = patterns[item][..., list(span.columns)].sum(-1).flatten()
        expected.append(choose_heads(share, grid, chosen=4).view(3, 4))
    found = find_localisation_heads(model, IMAGES[:2], PROMPTS[:2], chosen=4)
    assert found.scores.bool().tolist() == torch.stack(expected).tolist()
    assert found.scores.any()


# ---- What is found belongs to its model.


def test_found_heads_are_refused_on_another_model(followed, follower):
    heads = followed.top(2)
    assert eah.edit(follower, eah.Ablation(heads=heads, how="mean")) is not None
    other = eah.wrap(tiny_lvlm("llava", n_heads=4), tiny_processor("llava"))
    with pytest.raises(
        SettingsError, match=r"heads L1H2.* were found in LlavaFor.* wi"
    ):
        eah.edit(other, eah.Ablation(heads=heads, how="mean"))
    free = eah.Ablation(heads=heads.free(), how="mean")
    assert eah.edit(other, free) is not None
    with torch.no_grad():  # a step of training makes another model
        follower._module.lm_head.weight[3] += 1
    with pytest.raises(SettingsError, match="expected the same model"):
        eah.edit(follower, eah.Ablation(heads=heads, how="mean"))


def test_found_heads_survive_the_file_of_a_condition(followed):
    settings = eah.Ablation(heads=followed.top(2), how="mean")
    condition = eah.Condition("PIH", settings)
    written = condition.to_dict()
    assert written["ablation"]["heads"]["weights"] == followed.weights
    assert eah.Condition.from_dict(written) == condition
    bare = eah.Ablation(heads=("L1H2",))
    assert bare.to_dict()["heads"] == [[1, 2]]


def test_a_patched_twin_is_refused(follower):
    twin = eah.edit(follower, eah.EAH(layers=(1,)))
    for find in (find_image_heads, find_localisation_heads):
        with pytest.raises(UnsupportedError, match="the model is a patched twin"):
            find(twin, IMAGES[:2], PROMPTS[:2])
