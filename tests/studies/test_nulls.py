"""Null methods: each is what it says, row by row, in any batch, after any stop."""

import dataclasses
import json
from collections import Counter
from typing import ClassVar

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.benchmarks import contrast_cap
from eah_interp.errors import InputError, SettingsError
from eah_interp.interventions.directions import Directions
from eah_interp.lvlm.inputs import append_to_prompt
from eah_interp.studies import (
    Condition,
    StudyFile,
    StudyRun,
    control_conditions,
    list_captions,
    summarise,
    toy_items,
)
from eah_interp.studies.conditions import (
    BASELINE,
    CONTROL_DONORS,
    GREEDY,
    NEAR_TIE,
    PLAIN,
    SAMPLED,
    YES_BIASED,
    describe_patch,
)
from eah_interp.studies.items import open_image
from eah_interp.studies.nulls import NearTie, RandomDraw, draw_directions, draw_heads
from eah_interp.studies.sampled import ItemDraws
from eah_interp.studies.summary import tabulate_conditions
from eah_interp.studies.work import run_batch, split_batches
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from eah_interp.toy.language import ask_for, prompt_for
from tests.studies.common import assert_same, content, toy_study

DECODING = {"yes_no": {"max_new_tokens": 2}, "caption": {"max_new_tokens": 12}}
ABLATION = eah.Ablation(heads=("L1H0", "L1H3", "L4H2"))


@pytest.fixture(scope="module")
def items():
    return toy_items(3, samplings=("adversarial",))


def answers(model, items, condition, *, size=5, seed=0):
    """Answer items in batches of a size."""
    return pd.concat(
        run_batch(model, batch, condition, decoding=DECODING, seed=seed)
        for batch in split_batches(items, size)
    ).set_index("item")


# ---- A yes-biased prompt.


def test_the_sentence_is_said_after_the_question_and_nowhere_else(toy, items):
    found = answers(toy, items, YES_BIASED)
    plain = answers(toy, items, BASELINE)
    changed = 0
    for item in items:
        if item.task == "caption":
            assert found.answer[item.id] == plain.answer[item.id]
            continue
        asked = prompt_for(
            f"{ask_for(item.object)} Whenever possible, please select Yes."
        )
        alone = toy.describe(open_image(item.image), asked, max_new_tokens=2)
        assert found.answer[item.id] == alone
        changed += alone != plain.answer[item.id]
    assert changed, "the sentence changed no answer"


def test_a_question_without_a_template_is_asked_as_if_the_user_had_said_it(toy, items):
    question = next(item for item in items if item.task == "yes_no")
    text = ask_for(question.object)
    told = [{"role": "user", "content": text}]
    ways = [dataclasses.replace(question, prompt=way) for way in (text, told)]
    rows = [
        answers(toy, [one], Condition("a", ask="Say Yes.")).answer.iloc[0]
        for one in (question, *ways)
    ]
    asked = prompt_for(f"{text} Say Yes.")
    assert (
        rows == [toy.describe(open_image(question.image), asked, max_new_tokens=2)] * 3
    )


def test_a_sentence_goes_into_the_last_turn_of_the_user():
    image = {"type": "image"}
    chat = [
        {"role": "user", "content": [image, {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    ]
    before = json.dumps(chat)
    said = append_to_prompt(chat, "Say Yes.", None)
    assert [one["content"] for one in said] == [
        chat[0]["content"],
        "No.",
        "Sure? Say Yes.",
    ]
    assert json.dumps(chat) == before
    parts = [{"role": "user", "content": [{"type": "text", "text": "A?"}, image]}]
    added = append_to_prompt(parts, "B.", None)[0]["content"]
    assert added == [
        {"type": "text", "text": "A?"},
        image,
        {"type": "text", "text": "B."},
    ]
    with pytest.raises(InputError, match="no turn of the user"):
        append_to_prompt([{"role": "system", "content": "x"}], "B.", None)


def test_a_prompt_that_ends_as_no_template_does_is_refused_with_its_end(toy, items):
    with pytest.raises(
        InputError, match=r"ends one, with ' ASSISTANT:'.* got '.*BOT:'"
    ):
        append_to_prompt("USER: <image>\nA boat? BOT:", "Say Yes.", toy.processor)
    odd = dataclasses.replace(items[0], prompt="USER: <image>\nA boat? BOT:")
    row = answers(toy, [odd], YES_BIASED).iloc[0]
    assert row.error.startswith("InputError: a prompt that is written out must end")


# ---- Near ties turned to Yes.


def by_hand(model, item, *, mass, gap):
    """Answer one item: a trace of the prompt, and the rule in plain numbers."""
    image = open_image(item.image)
    with model.trace(image, item.prompt):
        logits = model.output.logits[0, -1].save()
    shares = logits.double().softmax(-1).tolist()
    vocabulary = model.tokenizer.get_vocab()
    yes = sum(shares[vocabulary[token]] for token in ("Yes", "▁Yes"))
    no = sum(shares[vocabulary[token]] for token in ("No", "▁No"))
    near = yes + no > mass and abs(yes - no) < gap
    said = model.describe(image, item.prompt, max_new_tokens=2)
    return ("Yes" if near else said), near


@pytest.mark.parametrize(("mass", "gap"), [(0.2, 0.5), (0.9999, 0.999)])
def test_near_ties_are_turned_to_yes_and_no_others(toy, items, mass, gap):
    condition = Condition("it", near_tie=NearTie(mass=mass, gap=gap))
    found, plain = answers(toy, items, condition), answers(toy, items, BASELINE)
    ties = 0
    for item in items:
        if item.task == "caption":
            assert found.answer[item.id] == plain.answer[item.id]
            continue
        expected, near = by_hand(toy, item, mass=mass, gap=gap)
        assert found.answer[item.id] == expected
        ties += near
    assert (ties > 0) == (gap > 0.9), "the thresholds let nothing, or all, through"


def test_beams_of_an_item_share_its_first_token(toy, items):
    condition = Condition("it", near_tie=NearTie(gap=0.999))
    beams = dataclasses.replace(condition, decoding={"yes_no": {"num_beams": 3}})
    asked = [item for item in items if item.task == "yes_no"]
    one, three = answers(toy, asked, condition), answers(toy, asked, beams)
    assert (one.answer == "Yes").sum() > (
        answers(toy, asked, BASELINE).answer == "Yes"
    ).sum()
    near = [by_hand(toy, item, mass=0.2, gap=0.999)[1] for item in asked]
    assert all(three.answer[near] == "Yes")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_other_families_find_ties_batch_for_batch_alike(family):
    """Of random weights every answer is a tie, or none, by where the mass is set."""
    model = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    image = random_image(3)
    prompts = ["Is there a boat?", "Is there a boat, or a tree?"]
    vocabulary = model.tokenizer.get_vocab()
    word = {"yes": [], "no": []}
    for token, number in vocabulary.items():
        word.get(token.strip("▁Ġ ").casefold(), []).append(number)
    masses = []
    for prompt in prompts:
        with model.trace(image, prompt):
            logits = model.output.logits[0, -1].detach().save()
        shares = logits.double().softmax(-1)
        masses.append(float(shares[[*word["yes"], *word["no"]]].sum()))
    encoding = model.encode([[image], [image]], prompts)
    with model.trace(**encoding):
        both = model.output.logits[:, -1].detach().save()
    between = NearTie(mass=sum(masses) / 2, gap=1.0)
    found = between.find(both, model.tokenizer)
    assert found == [mass > sum(masses) / 2 for mass in masses]
    assert sum(found) == 1


# ---- Sampling.


def test_a_sampled_answer_is_that_of_its_item_alone_under_its_seed(toy, items):
    found = answers(toy, items, SAMPLED, seed=3)
    for place, item in enumerate(items):
        torch.manual_seed(3 * 1_000_003 + place)
        alone = toy.describe(
            open_image(item.image),
            item.prompt,
            do_sample=True,
            max_new_tokens=DECODING[item.task]["max_new_tokens"],
        )
        assert found.answer[item.id] == alone
    greedy = answers(toy, items, BASELINE)
    assert (found.answer != greedy.answer).any()
    assert (found.answer != answers(toy, items, SAMPLED, seed=4).answer).any()


@pytest.mark.parametrize("size", [1, 3])
def test_sampled_answers_do_not_depend_on_their_batch(toy, items, size):
    state = torch.random.get_rng_state()
    pd.testing.assert_frame_equal(
        answers(toy, items, SAMPLED, size=size), answers(toy, items, SAMPLED, size=7)
    )
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_other_families_sample_batch_for_batch_alike(family):
    model = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    images = [[random_image(seed)] for seed in range(3)]
    prompts = ["Is it a cat?", "Describe this image in detail, please.", "Why?"]

    def sample(places):
        encoding = model.encode(
            [images[n] for n in places], [prompts[n] for n in places]
        )
        with ItemDraws(places):
            ids = model.generate(
                **encoding, do_sample=True, max_new_tokens=6, min_new_tokens=6
            )
        return ids[:, -6:].tolist()

    assert sample([0, 1, 2]) == [sample([n])[0] for n in range(3)]


def test_rows_are_drawn_as_often_as_they_are_likely():
    shares = torch.tensor([0.5, 0.3, 0.2, 0.0])
    with ItemDraws(range(20_000)):
        drawn = torch.multinomial(shares.expand(20_000, 4), num_samples=1)
    counts = torch.bincount(drawn.flatten(), minlength=4)
    expected = shares * 20_000
    assert counts[3] == 0
    assert ((counts - expected) ** 2)[:3].div(expected[:3]).sum() < 13.8  # p = 0.001


def test_what_is_no_draw_of_the_batch_is_left_alone():
    generator = torch.Generator().manual_seed(1)
    wide = torch.full((3, 50), 0.02)
    expected = torch.multinomial(wide, 1, generator=torch.Generator().manual_seed(1))
    with ItemDraws([5, 6, 7]):
        own = torch.multinomial(wide, 1, generator=generator)
        torch.manual_seed(9)
        other = torch.multinomial(wide[:2], 1)
    torch.manual_seed(9)
    assert torch.equal(own, expected)
    assert torch.equal(other, torch.multinomial(wide[:2], 1))


# ---- Random heads.


def count_layers(heads):
    return Counter(layer for layer, _ in heads)


def test_as_many_heads_of_the_same_layers_are_drawn_and_never_the_own():
    own = ABLATION.pairs
    drawn = [draw_heads(own, n_heads=8, draw=n, seed=1) for n in range(100)]
    assert len(set(drawn)) == 100
    assert own not in drawn
    assert all(count_layers(one) == count_layers(own) for one in drawn)
    assert drawn[:3] == [draw_heads(own, n_heads=8, draw=n, seed=1) for n in range(3)]
    assert drawn[0] != draw_heads(own, n_heads=8, draw=0, seed=2)


def test_every_head_is_drawn_as_often_as_any_other():
    counts = Counter(
        head
        for seed in range(2000)
        for head in draw_heads([(2, 0)], n_heads=5, draw=0, seed=seed)
    )
    assert set(counts) == {(2, head) for head in (1, 2, 3, 4)}
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 16.3  # p = 0.001


def test_all_draws_together_are_all_other_sets():
    drawn = {draw_heads([(0, 1)], n_heads=4, draw=n, seed=3) for n in range(3)}
    assert drawn == {((0, 0),), ((0, 2),), ((0, 3),)}


def test_a_condition_runs_the_heads_that_it_draws(toy, items):
    condition = control_conditions(ABLATION, draws=2, seed=4)[3]
    assert condition.name == "Ablation, random heads 2"
    heads = draw_heads(ABLATION.pairs, n_heads=toy.n_heads, draw=1, seed=4)
    by_name = Condition(condition.name, eah.Ablation(heads=heads))
    pd.testing.assert_frame_equal(
        answers(toy, items, condition), answers(toy, items, by_name)
    )


def test_more_draws_than_there_are_other_heads_are_refused(toy):
    whole = eah.Ablation(heads=[(2, head) for head in range(8)])
    conditions = control_conditions(whole, draws=1)
    with pytest.raises(
        SettingsError, match=r"expected 1 draws .* are none \(8 of 8 in"
    ):
        toy_study(toy, conditions=conditions)
    alone = control_conditions(eah.Ablation(heads=["L2H0"]), draws=8)
    with pytest.raises(
        SettingsError, match=r"expected 8 draws .* there are 7 \(1 of 8"
    ):
        toy_study(toy, conditions=alone)


# ---- Random directions, and settings that are fitted to their items.


def steer(values, layers=(1, 4, 6), **more):
    return eah.Steer(vectors=Directions(values, layers, **more), layers=layers)


def test_directions_are_as_long_as_the_own_and_point_elsewhere(toy):
    own = steer(torch.arange(3.0 * 128).reshape(1, 3, 128) + 1)
    drawn = [
        RandomDraw("vectors", draw=n).replace(own, n_heads=1, items=[0]).vectors.values
        for n in (0, 0, 1)
    ]
    for values in drawn:
        assert values.norm(dim=-1).allclose(own.vectors.values.norm(dim=-1))
        shares = torch.cosine_similarity(values, own.vectors.values, dim=-1)
        assert shares.abs().max() < 0.4
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_directions_have_no_preference():
    drawn = torch.stack(
        [draw_directions(torch.tensor([2.0, 0, 0]), seed=n) for n in range(4000)]
    )
    assert drawn.norm(dim=-1).allclose(torch.tensor(2.0))
    assert drawn.mean(0).abs().max() < 0.07
    assert (drawn.T @ drawn / 4000 - torch.eye(3) * 4 / 3).abs().max() < 0.08


def test_directions_of_items_do_not_depend_on_their_batch():
    wide = torch.rand(5, 3, 4) + 0.1
    draw = RandomDraw("vectors", draw=1, seed=2)

    def drawn(places):
        own = steer(wide[places], per_item=True)
        return draw.replace(own, n_heads=1, items=places).vectors.values

    whole = drawn([0, 1, 2, 3, 4])
    assert whole.norm(dim=-1).allclose(wide.norm(dim=-1))
    assert torch.equal(torch.cat([drawn([0, 1, 2]), drawn([3, 4])]), whole)
    assert len({str(row) for row in whole}) == 5


def test_heads_of_items_do_not_depend_on_their_batch():
    own = (((0, 1), (2, 3)), (), ((1, 1), (1, 2)))

    def drawn(places):
        patch = eah.VHR(by_item=[own[n] for n in places])
        found = RandomDraw("heads", seed=1).replace(patch, n_heads=6, items=places)
        return found.by_item

    whole = drawn([0, 1, 2])
    assert (*drawn([0]), *drawn([1, 2])) == whole
    assert list(map(count_layers, whole)) == list(map(count_layers, own))
    assert whole[1] == ()
    assert not {whole[0], whole[2]} & set(own)


FOUND_IN_ITEMS = {
    "heads": eah.VHR(alpha=6.0, layers=(1, 2, 3, 4)),
    "vectors": eah.Steer(scale=0.6),
}


@pytest.mark.parametrize("what", FOUND_IN_ITEMS)
def test_what_is_found_on_each_item_is_drawn_for_each_item(toy, items, what):
    """In batches of any size, as by hand: fitted, drawn and described one by one."""
    patch = FOUND_IN_ITEMS[what]
    _, plain, drawn = control_conditions(patch, draws=1, seed=5)[:3]
    captions = [item for item in items if item.task == "caption"][:2]
    rows = [
        answers(toy, captions, one, size=size).answer
        for one, size in ((drawn, 4), (drawn, 1), (plain, 4), (BASELINE, 4))
    ]
    assert rows[0].equals(rows[1])
    for place, item in enumerate(captions):
        image = open_image(item.image)
        own = patch.fit(toy, image, item.prompt)
        own = drawn.random.replace(own, n_heads=toy.n_heads, items=[place])
        said = eah.edit(toy, own).describe(image, item.prompt, max_new_tokens=12)
        assert rows[0][item.id] == said
    assert not rows[0].equals(rows[3])
    assert not rows[2].equals(rows[3])


FITTED = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted(eah.Ablation):
    """An ablation that is told by its items which head it is of."""

    kind: ClassVar[str] = "fitted"

    def fit(self, _model, images, prompts):
        FITTED.append((len(images), tuple(prompts)))
        return dataclasses.replace(self, heads=((len(images), 0),))


def test_settings_are_fitted_to_each_batch_before_heads_are_drawn(toy, items):
    FITTED.clear()
    asked = [item for item in items if item.task == "yes_no"]
    plain = Condition("it", Fitted(heads=("L0H0",)))
    drawn = dataclasses.replace(plain, random=RandomDraw("heads"))
    biased = dataclasses.replace(plain, ask="Say Yes.")
    found = [answers(toy, asked[:4], one, size=4) for one in (plain, drawn, biased)]
    prompts = tuple(item.prompt for item in asked[:4])
    said = tuple(p.replace(" ASSISTANT:", " Say Yes. ASSISTANT:") for p in prompts)
    assert [one[1] for one in FITTED] == [prompts, prompts, said]
    assert {one[0] for one in FITTED} == {4}
    heads = draw_heads([(4, 0)], n_heads=8, draw=0, seed=0)
    for rows, expected in zip(found, (((4, 0),), heads), strict=False):
        by_name = Condition("it", eah.Ablation(heads=expected))
        pd.testing.assert_frame_equal(rows, answers(toy, asked[:4], by_name, size=4))


def test_a_fit_that_fails_is_an_error_of_its_item(toy, items, monkeypatch):
    def fail(self, _model, images, prompts):
        if len(images) > 1 or "boat" in prompts[0]:
            raise InputError("no boats, and one at a time")
        return self

    monkeypatch.setattr(Fitted, "fit", fail)
    boat = dataclasses.replace(items[0], prompt="Is there a boat?")
    rows = answers(toy, [boat, items[1]], Condition("it", Fitted(heads=("L0H0",))))
    assert rows.error.notna().tolist() == [True, False]


# ---- In a study: manifests, stops, files, sums.


ALL = (
    BASELINE,
    YES_BIASED,
    Condition("tied", near_tie=NearTie(mass=0.1, gap=0.9)),
    Condition("sampled", decoding={"caption": {"do_sample": True, "top_k": 5}}),
    *control_conditions(ABLATION, name="ours", draws=2, seed=7)[1:4],
    Condition("both", ABLATION, ask="Say Yes.", near_tie=NearTie()),
)


@pytest.mark.parametrize("condition", [*ALL, *PLAIN.values()], ids=lambda one: one.name)
def test_a_condition_survives_a_manifest(condition):
    written = json.loads(json.dumps(condition.to_dict()))
    assert Condition.from_dict(written) == condition
    assert Condition.from_dict(written).to_dict() == written


def test_a_condition_that_only_patches_is_written_as_ever():
    assert BASELINE.to_dict() == {"name": "baseline"}
    assert set(Condition("a", ABLATION).to_dict()) == {"name", "ablation"}


def test_a_study_that_was_stopped_goes_on_to_the_same_rows(toy, tmp_path):
    items = toy_items(2, samplings=("random",))
    some = [ALL[n] for n in (1, 3, 5, -1)]
    study = toy_study(toy, items=items, conditions=some, seed=2)
    study.run(tmp_path / "whole", progress=False)
    study.run(tmp_path / "parts", shard="1/2", progress=False)
    written = sorted((tmp_path / "parts" / "rows").rglob("*.parquet"))
    for path in written[::2]:
        path.unlink()
    again = StudyRun.load(tmp_path / "parts")
    assert not again.is_complete
    study.run(tmp_path / "parts", progress=False)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    rows = content(tmp_path / "whole")
    assert rows.error.isna().all()
    assert rows.set_index("condition").steps["yes-biased"].isna().all()


def test_another_threshold_is_another_study_and_is_named(toy, tmp_path):
    toy_study(toy, 1, conditions=ALL[:3]).run(tmp_path, progress=False)
    other = dataclasses.replace(ALL[2], near_tie=NearTie(mass=0.1, gap=0.8))
    with pytest.raises(
        SettingsError, match=r"conditions\[2\].near_tie.gap: 0.9 against 0.8"
    ):
        toy_study(toy, 1, conditions=(*ALL[:2], other)).run(tmp_path, progress=False)


def test_what_a_condition_cannot_change_is_not_compared(toy, tmp_path):
    conditions = (*ALL[:4], Condition("again"))
    run = toy_study(toy, 2, conditions=conditions).run(tmp_path, progress=False)
    found = summarise(run)
    compared = {(c.condition, c.metric.task) for c in found.contrasts}
    assert compared == {
        ("yes-biased", "yes_no"),
        ("tied", "yes_no"),
        ("sampled", "caption"),
        ("again", "yes_no"),
        ("again", "caption"),
    }
    assert len(found.frame()) > 0


FILE = """\
items: {source: toy, n_scenes: 1}
conditions:
  - baseline
  - yes_biased
  - near_tie
  - sampled
  - greedy
  - {kind: pai, alpha: 0.5, controls: true}
  - {kind: ablation, heads: [L1H2, L2H0], name: blind, controls: {draws: 2, seed: 9}}
  - {name: strict, near_tie: {gap: 0.1}}
  - {name: please, ask: "Say Yes."}
  - {kind: pai, ask: "Say Yes.", name: louder}
  - {sweep: {alpha: [0.1]}, kind: pai, decoding: {caption: {num_beams: 2}}}
seed: 3
"""


@pytest.fixture
def load(tmp_path):
    def read(text):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return StudyFile.load(file)

    return read


def test_a_file_says_all_of_it(load):
    found = {one.name: one for one in load(FILE).conditions}
    blind = eah.Ablation(heads=("L1H2", "L2H0"))
    drawn = {"null_of": "blind", "patch": blind}
    expected = (
        BASELINE,
        YES_BIASED,
        NEAR_TIE,
        SAMPLED,
        GREEDY,
        Condition("PAI alpha=0.5", eah.PAI(alpha=0.5)),
        Condition("blind", blind),
        *(
            Condition(
                f"blind, random heads {n + 1}",
                random=RandomDraw("heads", draw=n, seed=9),
                **drawn,
            )
            for n in range(2)
        ),
        Condition("strict", near_tie=NearTie(gap=0.1)),
        Condition("please", ask="Say Yes."),
        Condition("louder", eah.PAI(), ask="Say Yes."),
        Condition(
            "PAI alpha=0.1",
            eah.PAI(alpha=0.1),
            decoding={"caption": {"num_beams": 2}},
        ),
    )
    assert list(found.values()) == list(expected)


def test_controls_bring_no_null_of_questions_that_are_not_asked(load):
    text = "items: {source: toy, n_scenes: 1, questions: false}\nconditions:\n"
    controls = text + "  - {kind: pai, controls: true}\n"
    assert [c.name for c in load(controls).conditions] == ["baseline", "PAI"]
    named = load(controls + "  - near_tie\n")
    assert [c.name for c in named.conditions] == ["baseline", "PAI", "near tie"]
    names = [c.name for c in control_conditions(eah.PAI(), tasks=["caption"])]
    assert names == ["baseline", "PAI"]


def test_eah_keeps_the_controls_that_it_had(load):
    names = [one.name for one in control_conditions(eah.EAH())]
    assert names == ["baseline", "EAH", *CONTROL_DONORS]
    text = "items: {source: toy, n_scenes: 1}\nconditions:\n"
    both = [
        load(f"{text}  - {entry}\n").conditions
        for entry in (
            "{controls: {layers: [2]}}",
            "{kind: eah, layers: [2], controls: true}",
        )
    ]
    assert [one.patch for one in both[0]] == [one.patch for one in both[1]]


WRONG = {
    "an unknown null": (
        "near_tie",
        "near_ties",
        r":5: .*expected baseline, yes_biased",
    ),
    "a threshold": ("gap: 0.1", "gap: 2", r":10: .*gap of a near tie must be a share"),
    "a key": ("gap: 0.1", "gab: 2", r":10: .*a near tie has mass, gap, got gab"),
    "no name": (
        "name: please, ask",
        "ask",
        r":11: .*without a kind has a name and some",
    ),
    "a sentence": (
        'ask: "Say Yes.", name',
        "ask: 3, name",
        r":12: .*ask must be a text",
    ),
    "a task": (
        "caption: {num",
        "captions: {num",
        r":13: .*expected yes_no, caption, ch",
    ),
    "no draws": ("draws: 2", "draws: 0", r":9: .*draws must be"),
    "a control": (
        "draws: 2",
        "layers: 2",
        r":9: .*controls beside a kind must be true",
    ),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_line(load, old, new, message):
    assert old in FILE
    with pytest.raises(SettingsError, match=message):
        load(FILE.replace(old, new, 1))


REFUSED = {
    "heads of what has none": (
        {"patch": eah.PAI(), "random": RandomDraw("heads")},
        "heads",
    ),
    "heads of nothing": ({"random": RandomDraw("heads")}, "settings that have heads"),
    "vectors": ({"patch": ABLATION, "random": RandomDraw("vectors")}, "have vectors"),
    "no draw": (
        {"patch": ABLATION, "random": "heads"},
        "random must be a RandomDraw, or None",
    ),
    "a tie": ({"near_tie": 0.5}, r"near_tie must be NearTie\(\), or None, got 0.5"),
    "a sentence": ({"ask": None}, "ask must be a text, got None"),
    "decoding": ({"decoding": {"captions": {}}}, "expected yes_no, caption, choice"),
    "settings": ({"decoding": {"caption": 3}}, "decoding of caption must be a mapping"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_condition_that_cannot_be_is_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        Condition("it", **values)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_condition_that_a_study_cannot_run_is_refused(toy):
    captions = toy_items(1, questions=False)
    with pytest.raises(
        SettingsError, match="'near tie' changes answers of yes_no alone"
    ):
        toy_study(toy, items=captions, conditions=[BASELINE, NEAR_TIE])
    odd = Condition("odd", decoding={"caption": {"num_beems": 2}})
    with pytest.raises(
        SettingsError, match=r"condition 'odd': decoding of caption: .*beems"
    ):
        toy_study(toy, conditions=[odd])
    for key in ("mass", "gap"):
        with pytest.raises(SettingsError, match=f"{key} of a near tie must be a share"):
            NearTie(**{key: -0.1})
    unknown = Condition("AD-HH", eah.ADHH())
    with pytest.raises(
        SettingsError, match="ADHH needs heads, which belong to a model"
    ):
        toy_study(toy, conditions=[unknown])
    with pytest.raises(SettingsError, match="what must be one of"):
        RandomDraw("layers")


def test_the_conditions_are_told_in_words(toy, tmp_path):
    asked = [item for item in toy_items(2, samplings=("random",)) if item.label]
    conditions = (*ALL[:3], *ALL[4:])
    run = toy_study(toy, items=asked, conditions=conditions).run(
        tmp_path, progress=False
    )
    text = summarise(run).markdown() + str(tabulate_conditions(summarise(run)))
    for told in (
        "Whenever possible, please select Yes.",
        "more than 0.1 together and differ by less than 0.9",
        "as many random heads of the same layers (draw 1, seed 7)",
    ):
        assert told in text
    told = describe_patch(ALL[3].to_dict())
    assert told == (
        "nothing to the model",
        "decodes caption with do_sample=True, top_k=5",
    )


def test_captions_are_summed_up_beside_the_baselines_of_the_same_mean_length(
    toy, tmp_path
):
    items = toy_items(6, questions=False)
    conditions = [BASELINE, Condition("EAH", eah.EAH(layers=(4,)))]
    run = toy_study(toy, items=items, conditions=conditions, decoding=DECODING).run(
        tmp_path, progress=False
    )
    found = summarise(run)
    told = list_captions(run)
    for by in ("objects", "words"):
        own = tuple(one for one in found.caps if one.by == by)
        expected = contrast_cap(
            told["baseline"], told["EAH"], by=by, condition="EAH", draws=found.draws
        )
        assert str(own) == str(expected)
    titles = [table.caption for table in found.tables]
    assert "Captions against baseline's, cut to the same mean number of words" in titles
    assert len(found.to_dict()["caps"]) == 6
