"""Sinks moved, swapped between images, and edited before the projector, by hand too."""

import contextlib

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions import SinkEdit, find_sinks, map_tower
from eah_interp.testing import random_image
from tests.hooked import TOWER_OF, first
from tests.interventions.test_find_sinks import planted
from tests.lvlm.test_tower import READ_FIRST
from tests.tiny_families import encode, ignore_renamed, share_model, share_plain

pytestmark = ignore_renamed

FAMILIES = ("llava", "qwen2_5_vl", "internvl")

HUGE = 300.0


@contextlib.contextmanager
def hooked(module, change):
    """Change what a module returns, before anybody else's hook sees it."""

    def act(_, __, output):
        new = change(first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(act, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def tower_layer(root, family):
    """Find the tower's layer that is read."""
    return root.get_submodule(f"{TOWER_OF[family]}.{0 if family in READ_FIRST else 1}")


def enlarge(tokens):
    """Make some tokens of the tower huge: where they are made, inside the layer."""

    def change(output):
        new = output.clone(memory_format=torch.contiguous_format)
        flat = new.view(-1, new.shape[-1])
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(len(tokens), flat.shape[-1], generator=generator)
        flat[list(tokens)] += HUGE * noise
        return new

    return change


@contextlib.contextmanager
def sinks_of_tower(root, family, tokens):
    """Plant sinks of the tower, in the last linear map of its layer."""
    parts = tower_layer(root, family).modules()
    last = [part for part in parts if isinstance(part, torch.nn.Linear)][-1]
    with hooked(last, enlarge(tokens)):
        yield


def pick_tokens(model, encoding):
    """Pick two tokens of item 0 and one of item 1, far from each other."""
    links = map_tower(model, encoding).links
    found = []
    for item, places in ((0, (2, -3)), (1, (5,))):
        own = links[links[:, 1] == item, 0].unique()
        found += [int(own[place]) for place in places]
    return found


def read_logits(model, encoding, settings):
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        eah.intervene(model, settings)
        logits = model.logits.save()
    return logits


def edit_by_hand(act, tokens, mine, others, partners):
    """Write what each of the tower's tokens becomes, token by token."""

    def change(output):
        new = output.clone(memory_format=torch.contiguous_format)
        old = output.reshape(-1, output.shape[-1])
        flat = new.view(-1, new.shape[-1])
        for token in tokens:
            if act == "scale":
                flat[token] = -0.5 * old[token]  # no norm behind hides a sign
            elif act == "mean":
                flat[token] = torch.stack([old[t] for t in others[mine[token]]]).mean(0)
        for one, other in partners:
            flat[one], flat[other] = old[other], old[one]
        return new

    return change


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("act", ["scale", "mean", "move", "swap"])
def test_tokens_of_the_tower_are_edited_before_the_projector(family, act):
    model, plain, encoding = share_model(family), share_plain(family), encode(family)
    a, b, c = pick_tokens(model, encoding)
    links = map_tower(model, encoding).links
    own = [links[links[:, 1] == item, 0].unique().tolist() for item in range(2)]
    others = [[t for t in tokens if t not in (a, b, c)] for tokens in own]
    to = (own[0].index(others[0][0]), own[0].index(others[0][4]))
    settings = SinkEdit(act=act, factor=-0.5, at="vision")
    partners = []
    if act == "move":
        settings = SinkEdit(act=act, at="vision", to=to)
        partners = [(a, own[0][to[0]]), (b, own[0][to[1]]), (c, own[1][to[0]])]
    elif act == "swap":
        partners = [(a, c)]
    by_hand = edit_by_hand(act, (a, b, c), {a: 0, b: 0, c: 1}, others, partners)
    with sinks_of_tower(model._module, family, (a, b, c)):
        ours = read_logits(model, encoding, settings.fit(model, encoding, None))
        empty = read_logits(model, encoding, eah.EAH(layers=(1,), gamma=1.0))
    with (
        sinks_of_tower(plain, family, (a, b, c)),
        hooked(tower_layer(plain, family), by_hand),
        torch.no_grad(),
    ):
        theirs = plain(**encoding, use_cache=False).logits
    tokens = encoding["attention_mask"].bool()
    gap = (ours - theirs)[tokens].abs().max()
    assert gap < 1e-4 * theirs[tokens].abs().max()
    assert (empty - theirs)[tokens].abs().max() > 100 * gap


def test_sinks_move_to_named_places_in_the_decoder_and_the_rest_stays():
    model, encoding = share_model("llava"), encode("llava")
    a, b, c = pick_tokens(model, encoding)
    with sinks_of_tower(model._module, "llava", (a, b, c)):
        found = find_sinks(model, encoding)
        sinks, columns = found.mask("tower"), found.columns
        free = [columns[i].nonzero().flatten().tolist() for i in range(2)]
        names = [
            place
            for place, _ in enumerate(free[0])
            if all(not sinks[i, free[i][place]] for i in range(2))
        ]
        taken = [place for place in range(len(free[0])) if place not in names]
        # A sink is no place to move a sink to.
        to = (taken[0], names[-1], names[0])
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            eah.intervene(model, SinkEdit(act="move", to=to))
            new = model.layers_input[0].save()
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            old = model.layers_input[0].save()
    expected = old.clone()
    for item in range(2):
        where = [free[item][n] for n in to if not sinks[item, free[item][n]]]
        own = sinks[item].nonzero().flatten().tolist()
        for sink, place in zip(own, where, strict=False):
            expected[item, sink] = old[item, place]
            expected[item, place] = old[item, sink]
    assert torch.equal(new, expected)
    assert not torch.equal(new, old)


def test_drawn_places_are_no_sinks_and_do_not_depend_on_the_batch():
    model, encoding = share_model("llava"), encode("llava")
    tokens = pick_tokens(model, encoding)
    one = model.encode([random_image(0)], ["Is there a cat?"])
    pair = model.encode([random_image(0), random_image(4)], ["Is there a cat?"] * 2)
    changed = []
    with sinks_of_tower(model._module, "llava", tokens[:2]):
        sinks = find_sinks(model, one).mask("tower")
        for inputs in (one, pair):
            with torch.no_grad(), model.trace(**inputs, use_cache=False):
                old = model.layers_input[0].save()
            with torch.no_grad(), model.trace(**inputs, use_cache=False):
                eah.intervene(model, SinkEdit(act="move", seed=3))
                new = model.layers_input[0].save()
            changed.append((old != new).any(-1)[0])
    assert torch.equal(changed[0], changed[1])
    assert int(changed[0].sum()) == 2 * int(sinks.sum()) > 0
    assert bool(changed[0][sinks[0]].all())


def test_sinks_of_the_language_model_are_swapped_where_a_layer_returns_them():
    model, encoding = share_model("llava"), encode("llava")
    columns = map_tower(model, encoding).columns
    own = [row.nonzero().flatten().tolist() for row in columns]
    places = ((0, own[0][2]), (0, own[0][6]), (1, own[1][4]))
    settings = SinkEdit(columns="language", act="swap", at="layers", layers=(1,))
    with planted(model, "llava", encoding, places=places):
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            old = model.layers_output[1].save()
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            eah.intervene(model, settings)
            new = model.layers_output[1].save()
    expected = old.clone()
    (i, a), _, (j, b) = places
    expected[i, a], expected[j, b] = old[j, b], old[i, a]
    assert torch.equal(new, expected)


@pytest.mark.parametrize("act", ["scale", "move", "swap"])
@pytest.mark.parametrize("instead", ["random", "norm"])
def test_controls_at_the_tower_are_as_many_other_tokens(act, instead):
    model, encoding = share_model("qwen2_5_vl"), encode("qwen2_5_vl")
    planted_ = pick_tokens(model, encoding)
    settings = SinkEdit(act=act, at="vision", instead=instead, factor=0.5)
    settings = settings.fit(model, encoding, None)
    with sinks_of_tower(model._module, "qwen2_5_vl", planted_):
        with torch.no_grad(), model.trace(**encoding) as tracer:
            old = model.vision_output.save()
            tracer.stop()
        with torch.no_grad(), model.trace(**encoding, use_cache=False):
            eah.intervene(model, settings)
            new = model.vision_output.save()
    changed = (new != old).any(-1).flatten().nonzero().flatten().tolist()
    n_changed = {"scale": 3, "move": 6, "swap": 2}[act]
    assert len(changed) == n_changed
    assert not set(changed) & set(planted_)


def test_an_edited_twin_generates_and_later_steps_read_no_image():
    model, encoding = share_model("llava"), encode("llava")
    tokens = pick_tokens(model, encoding)
    settings = SinkEdit(act="scale", at="vision").fit(model, encoding, None)
    assert settings.fit(model, encoding, None) is settings
    assert SinkEdit.from_dict(settings.to_dict()) == settings
    with sinks_of_tower(model._module, "llava", tokens):
        twin = eah.edit(model, settings)
        answer = twin.generate(**encoding, max_new_tokens=3, do_sample=False)
        first_word = read_logits(model, encoding, settings)[:, -1].argmax(-1)
        seen = find_sinks(twin, encoding)
    assert torch.equal(answer[:, encoding["input_ids"].shape[1]], first_word)
    assert not seen.mask("tower").any()


def test_what_cannot_be_moved_or_swapped_is_refused(as_users_run_it):
    model, encoding = share_model("llava"), encode("llava")
    with pytest.raises(SettingsError, match='to goes with act="move"'):
        SinkEdit(act="scale", to=(1,))
    with pytest.raises(SettingsError, match="places of 0 or more, each once"):
        SinkEdit(act="move", to=(1, 1))
    with pytest.raises(SettingsError, match='"vision" is behind those of the tower'):
        SinkEdit(act="drop", at="vision")
    with pytest.raises(SettingsError, match="made by its layers, and at='vision'"):
        SinkEdit(columns="language", act="scale", at="vision")
    with pytest.raises(SettingsError, match="map must be a TowerMap"):
        SinkEdit(act="scale", at="vision", map=3)
    with pytest.raises(SettingsError, match="SinkEdit was not fitted"):
        eah.edit(model, SinkEdit(act="scale", at="vision"))
    with pytest.raises(UnsupportedError, match="no columns of their own"):
        SinkEdit(act="scale", at="vision").fit(
            share_model("blip_2"), encode("blip_2"), None
        )
    with pytest.raises(UnsupportedError, match="its partner is the item beside it"):
        SinkEdit(act="swap").of_item(0, 2)
    fitted = SinkEdit(act="scale", at="vision").fit(model, encoding, None)
    one = {name: value[:1] for name, value in encoding.items()}
    with pytest.raises(InputError, match="mapped for other items"):
        read_logits(model, one, fitted)
    with pytest.raises(InputError, match="expected an even number of items"):
        read_logits(model, one, SinkEdit(act="swap"))
    same = model.encode([random_image(1)] * 2, ["Is there a cat?", "A dog?"])
    with pytest.raises(InputError, match="show the same image"):
        read_logits(model, same, SinkEdit(act="swap"))
    with pytest.raises(InputError, match="place 5000 does not exist in item 0"):
        read_logits(model, encoding, SinkEdit(act="move", to=(5000,)))
