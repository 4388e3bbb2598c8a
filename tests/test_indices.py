"""Integers and numbers of any kind are taken and become plain; the rest is refused."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import (
    approximate_heads,
    attribute_patches,
    attribute_recipients,
    read_patterns,
)
from eah_interp.attribution.nodes import find_nodes
from eah_interp.errors import EAHError, SettingsError
from eah_interp.interventions import Intervention, SinkEdit
from eah_interp.kernels.sinks import choose_donors
from eah_interp.testing import random_image

# The annotations name what is stored.
pytestmark = pytest.mark.usefixtures("as_users_run_it")

IMAGE = random_image()
KINDS = {
    "int64": np.int64,
    "uint8": np.uint8,
    "0-d array": lambda n: np.array(n),
    "torch": lambda n: torch.tensor(n),
    "pandas": lambda n: pd.Series([n]).iloc[0],
}
ROWS = {
    "array": np.array,
    "tensor": torch.tensor,
    "series": pd.Series,
    "index": pd.Index,
    "list of int64": lambda rows: [np.int64(n) for n in rows],
    "range": lambda rows: range(rows[0], rows[-1] + 1),
}
NO_INTS = {
    "text": "12",
    "texts": ["1", "2"],
    "float": 1.0,
    "floats": [1.9],
    "array of floats": np.array([1.0]),
    "column with a gap": pd.Series([1, None]),
    "booleans": [True, False],
    "array of booleans": np.array([True]),
    "true": True,
    "numpy's true": np.True_,
    "torch's true": torch.tensor(True),
    "nothing": [],
    "no numbers": torch.tensor(1, device="meta"),
    "nested": [[1, 2, 3]],
    "mapping": {1: 2},
    "complex": 1j,
    "object": object(),
}


def plain(value):
    return type(value) is int or all(type(one) is int for one in value)


def list_switches():
    """Every setting of every intervention that is True or False."""
    for kind in _all_under(Intervention):
        for field in dataclasses.fields(kind):
            if field.init and str(field.type).startswith("bool"):
                yield pytest.param(kind, field.name, id=f"{kind.__name__}.{field.name}")


def _all_under(kind):
    for one in kind.__subclasses__():
        if one.__module__.startswith("eah_interp."):
            yield one
            yield from _all_under(one)


@pytest.mark.parametrize(("kind", "name"), list(list_switches()))
def test_a_switch_of_numpy_is_stored_as_a_plain_one(kind, name):
    made = kind(**{name: np.True_})
    assert getattr(made, name) is True
    assert kind.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("kind", ROWS)
def test_places_of_a_sink_edit_are_rows_of_any_kind(kind):
    made = SinkEdit(act="move", to=ROWS[kind]([0, 1]))
    assert made == SinkEdit(act="move", to=(0, 1))
    assert plain(made.to)


@pytest.mark.parametrize("kind", KINDS)
def test_an_integer_of_any_kind_is_stored_as_a_plain_one(kind):
    make = KINDS[kind]
    found = eah.EAH(
        layers=make(2), donor=make(3), recipients=[make(1), make(0)], seed=make(5)
    )
    assert found == eah.EAH(layers=(2,), donor=3, recipients=(0, 1), seed=5)
    assert all(map(plain, (found.layers, found.donor, found.recipients, found.seed)))
    ablated = eah.Ablation(heads=[(make(3), make(7)), "L1H0"])
    assert ablated == eah.Ablation(heads=("L3H7", "L1H0"))
    assert eah.VAR(sink_dims=[make(4)], layers=make(1)).layers == (1,)
    for settings in (found, ablated):
        json.dumps(settings.to_dict())
        hash(settings)


@pytest.mark.parametrize("kind", ROWS)
def test_integers_in_any_row_are_stored_as_plain_ones(kind):
    make = ROWS[kind]
    found = eah.EAH(layers=make([1, 2]), recipients=make([0, 1]), seed=make([8, 9]))
    assert found == eah.EAH(layers=(1, 2), recipients=(0, 1), seed=(8, 9))
    assert plain(found.layers)
    assert plain(found.recipients)
    assert plain(found.seed)


def test_heads_of_an_ablation_may_be_rows_of_a_table():
    pairs = [(3, 7), (1, 0)]
    table = pd.DataFrame({"layer": [3, 1], "head": [7, 0], "name": ["L3H7", "L1H0"]})
    expected = eah.Ablation(heads=pairs)
    for heads in (
        np.array(pairs),
        torch.tensor(pairs),
        table[["layer", "head"]].to_numpy(),
        table["name"],
        list(table[["layer", "head"]].itertuples(index=False)),
    ):
        assert eah.Ablation(heads=heads) == expected


@pytest.mark.parametrize("value", NO_INTS.values(), ids=NO_INTS)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: eah.EAH(layers=value), "layers"),
        (lambda value: eah.EAH(recipients=value), "recipients"),
        (lambda value: eah.EAH(seed=value), "seed"),
        (lambda value: eah.EAH(donor=value), "donor"),
        (lambda value: eah.PAI(layers=value), "layers"),
        (lambda value: eah.VAR(sink_dims=value), "sink_dims"),
        (lambda value: eah.Ablation(heads=value), "heads"),
        (lambda value: eah.Ablation(heads=[(1, value)]), "head"),
    ],
)
def test_what_is_no_integer_is_refused_by_name(make, name, value):
    is_text = isinstance(value, str)
    if is_text and name == "layers" and "PAI" in make.__code__.co_names:
        assert make(value).layers == value  # layers of a slice may be text: one alone
        return
    with pytest.raises(SettingsError, match=name):
        make(value)


@pytest.mark.parametrize("seed", [2**53, -(2**60), 10**400, [1, 10**30]])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(SettingsError, match="seed must be an integer"):
        eah.EAH(seed=seed)


@pytest.mark.parametrize(
    "value",
    ["0.5", 1j, True, [0.5], np.array([0.5]), None.__class__, float("nan"), 10**400],
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [("EAH", "beta"), ("EAH", "gamma"), ("PAI", "alpha")],
)
def test_what_is_no_number_is_refused_by_name(kind, name, value):
    with pytest.raises(SettingsError, match=name):
        getattr(eah, kind)(**{name: value})


@pytest.mark.parametrize("make", [float, np.float32, np.array, torch.tensor])
def test_a_number_of_any_kind_is_stored_as_a_plain_one(make):
    found = eah.EAH(beta=make(0.5), gamma=make(0.25))
    assert (type(found.beta), found) == (float, eah.EAH(beta=0.5, gamma=0.25))
    assert type(found.gamma) is float
    assert eah.PAI(alpha=make(0.5)) == eah.PAI(alpha=0.5)


@pytest.mark.parametrize("name", ["definition", "items", "head_0", "steps", "donor"])
def test_arrays_of_choices_are_refused_by_name(name):
    with pytest.raises(SettingsError, match=f"{name} must be one of"):
        eah.EAH(**{name: np.array(["all", "densest"])})


def test_a_table_of_sinks_names_layers_and_heads_in_every_door():
    model, image = eah.load(), random_image()
    top = eah.score_sinks(model, image).top(2)
    layer, head = top["layer"].iloc[0], top["head"].iloc[0]
    again = eah.score_sinks(model, image, layers=top["layer"])
    assert again.layers == tuple(sorted(set(top["layer"].tolist())))
    assert plain(again.layers)
    pairs = top[["layer", "head"]].to_numpy()
    nodes = find_nodes(model, pairs)
    assert [node.name for node in nodes] == [f"L{row[0]}H{row[1]}" for row in pairs]
    found = read_patterns(model, image, heads=pairs[:1], query=np.int64(-1))
    assert found.find_head((layer, head)) == found.find_item(np.int64(0)) == 0
    with model.trace(image, "what ?"):
        patch = eah.intervene(model, eah.EAH(layers=layer, donor=head))
    assert patch.donors.tolist() == [head]


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: eah.score_sinks(model, random_image(), layers=[1.0]),
        lambda model: eah.score_sinks(model, random_image(), layers="1"),
        lambda model: find_nodes(model, [(1.0, 0)]),
        lambda model: find_nodes(model, [(1, 0, 2)]),
        lambda model: find_nodes(model, [3]),
        lambda model: find_nodes(model, 3),
        lambda model: find_nodes(model, np.array([])),
        lambda model: model.anatomy.site("1"),
        lambda model: attribute_recipients(model, IMAGE, metric="yes_no", seed="1"),
        lambda model: approximate_heads(
            model, IMAGE, metric="yes_no", source=eah.EAH(), seed=[1.9]
        ),
        lambda model: approximate_heads(
            model, IMAGE, metric="yes_no", source=eah.EAH(), check="3"
        ),
        lambda model: attribute_patches(model, IMAGE, metric="yes_no").picture(
            0, heads=[(1.0, 2)]
        ),
        lambda model: eah.wrap(model._module, image_token_id="5"),
        lambda model: model.anatomy.site(1.0),
        lambda model: read_patterns(model, random_image(), heads=[(1, 0)], query=0.5),
        lambda model: read_patterns(model, random_image(), heads=[(1, 0)], query="x"),
    ],
)
def test_every_door_refuses_what_is_no_index(ask):
    with pytest.raises(SettingsError):
        ask(eah.load())


def test_kernels_take_heads_and_seeds_of_any_kind():
    density = torch.rand(2, 4)
    assert choose_donors(density, rule=np.int64(3)).tolist() == [3, 3]
    drawn = choose_donors(density, rule="random", seed=(4, 5))
    assert choose_donors(density, rule="random", seed=np.array([4, 5])).equal(drawn)
    for seed in ("45", [1.9, 2.0]):
        with pytest.raises(EAHError, match="seed"):
            choose_donors(density, rule="random", seed=seed)
