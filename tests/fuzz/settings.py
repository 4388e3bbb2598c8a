"""Settings: EAH, Ablation, PAI and VAR, made and read, and other small doors."""

import functools
import json
from pathlib import Path
from typing import Any

import torch

import eah_interp as eah
from eah_interp import benchmarks, statistics, toy
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies import Condition, Item, ModelSource, control_conditions, sweep
from eah_interp.testing import tiny_lvlm
from eah_interp.toy import language
from tests.fuzz.harness import Input, Target
from tests.fuzz.values import Rng, change, input_of, odd, odd_text, pick
from tests.saved import plan

UNDETERMINED = frozenset({"low", "high", "estimate"})
"""Ends of an interval that the data cannot carry; odds where all changed one way."""

CLASSES = (eah.EAH, eah.PAI, eah.VAR, eah.Ablation)
BASES: dict[type[Any], dict[str, Any]] = {
    eah.EAH: {
        "layers": (1,),
        "definition": "visible",
        "beta": None,
        "gamma": None,
        "donor": "densest",
    }
    | {
        "recipients": "all",
        "steps": "prefill",
        "seed": 0,
        "items": "all",
        "head_0": "eligible",
    },
    eah.PAI: {"alpha": 0.2, "layers": "2:", "steps": "all"},
    eah.VAR: {
        "sink_dims": (1,),
        "tau": 20.0,
        "rho": 0.5,
        "share": 0.6,
        "min_image": 0.2,
    }
    | {"layers": ":-1", "lone_sinks": "give", "steps": "all"},
    eah.Ablation: {"heads": [(1, 0)], "how": "zero", "steps": "all"},
}


@functools.cache
def model() -> Any:
    """Return the model that settings are checked on."""
    return eah.load()


def make_settings(rng: Rng, folder: Path) -> Input:
    kind = pick(rng, CLASSES)
    values = change(rng, BASES[kind], most=3)

    def use(made: Any) -> Any:
        again = kind.from_dict(json.loads(json.dumps(made.to_dict())))
        hash(made)
        return [repr(made), again == made, made.to_dict()]

    return input_of(kind, then=use, **values)


def make_preset(rng: Rng, folder: Path) -> Input:
    kind = pick(rng, (eah.EAH, eah.PAI, eah.VAR))
    which = pick(rng, ("paper", "official"))
    values = change(rng, BASES[kind])
    values = {k: v for k, v in values.items() if v is not BASES[kind][k]}
    args = ()
    if kind is eah.VAR and rng.random() < 0.6:
        args = (odd(rng),)
        if rng.random() < 0.5 and which == "paper":
            args, values["task"] = ("llama-2-7b",), odd(rng)
    return input_of(getattr(kind, which), *args, then=lambda s: s.to_dict(), **values)


def make_from_dict(rng: Rng, folder: Path) -> Input:
    if rng.random() < 0.1:
        return input_of(pick(rng, CLASSES).from_dict, odd(rng))
    saved = json.loads(plan.SETTINGS_FILE.read_text())
    saved.pop("conditions")
    one = pick(rng, list(saved.values()))
    kind = getattr(eah, one["class"])
    values: dict[Any, Any] = change(rng, one["values"], most=2)
    if rng.random() < 0.3:
        values[pick(rng, ["layer", "", 1, None, "kind", "é"])] = odd(rng)
    if rng.random() < 0.3 and values:
        values.pop(pick(rng, list(values)))
    return input_of(kind.from_dict, values, then=lambda made: made.to_dict())


def make_condition(rng: Rng, folder: Path) -> Input:
    way = int(rng.integers(5))
    if way == 0:
        tower = pick(rng, ["language", "vision"])
        values = change(rng, {"name": "a", "patch": eah.EAH(), "tower": tower})
        return input_of(Condition, then=lambda made: made.to_dict(), **values)
    if way == 1:
        saved = json.loads(plan.SETTINGS_FILE.read_text())["conditions"]
        values = change(rng, pick(rng, list(saved.values())))
        if rng.random() < 0.2:
            values = odd(rng)
        return input_of(Condition.from_dict, values, then=lambda made: made.to_dict())
    if way == 2:
        axes: dict[Any, Any] = {pick(rng, list(BASES[eah.EAH])): odd(rng)}
        values = change(rng, {"eah": eah.EAH(), "prefix": None})
        return input_of(sweep, odd(rng) if rng.random() < 0.2 else axes, **values)
    if way == 3:
        return input_of(control_conditions, odd(rng))
    values = change(
        rng, {"name": "toy", "dtype": None, "device_map": None, "revision": None}
    )
    return input_of(ModelSource, **values)


def make_item(rng: Rng, folder: Path) -> Input:
    base = {
        "id": "a",
        "task": "yes_no",
        "image": "toy:test:1",
        "prompt": "Is it?",
        "label": True,
    }
    base |= {"kind": "", "object": "cup", "truth": ("cup",), "cluster": "1"}
    values = change(rng, base)
    if rng.random() < 0.5:
        return input_of(Item, then=lambda made: made.to_dict(), **values)
    if rng.random() < 0.2:
        values.pop(pick(rng, list(values)))
    return input_of(Item.from_dict, odd(rng) if rng.random() < 0.1 else values)


def make_check(rng: Rng, folder: Path) -> Input:
    """Settings that may be right in themselves, on a model."""
    layers = pick(rng, [(0,), (4,), (5,), (99,), "7:", "-1:", ":0", (2**40,)])
    heads = pick(rng, [[(0, 0)], [(0, 99)], ["L99H0"], ["L0H0", (0, 0)], [(2**70, 0)]])
    made = [
        lambda: eah.EAH(layers=layers, donor=pick(rng, [0, 99, 2**70, "mean"])),
        lambda: eah.EAH(recipients=pick(rng, [(0,), (99,), (2**70,)])),
        lambda: eah.PAI(layers=layers),
        lambda: eah.VAR(sink_dims=pick(rng, [(0,), (10**6,), (2**70,)]), layers=layers),
        lambda: eah.Ablation(heads=heads),
        lambda: odd(rng),
    ]
    way = pick(rng, made)
    return Input(lambda: model().check(way()), f"check({layers}, {heads})")


def make_keywords(rng: Rng, folder: Path) -> Input:
    """`edit` and `intervene` outside a trace, and what `load` and `wrap` take."""
    way = int(rng.integers(6))
    if way == 0:
        return input_of(eah.edit, model(), odd(rng), then=repr)
    if way == 1:
        return input_of(eah.edit, odd(rng), eah.EAH(), then=repr)
    if way == 2:
        values = change(
            rng, {"eah": eah.EAH(), "image_mask": None, "prompt_mask": None}
        )
        return input_of(eah.intervene, pick(rng, [model(), odd(rng)]), **values)
    if way == 3:
        text = pick(rng, ["toy:", "toy:seed-9", "./nowhere", "", "toy:\x00", odd(rng)])
        return input_of(eah.load, odd(rng) if text is None else text, then=repr)
    values = change(
        rng, {"processor": None, "image_token_id": 3, "verify": True}, most=2
    )
    inner = pick(rng, [lambda: odd(rng), lambda: tiny_lvlm("llava"), torch.nn.Identity])
    return input_of(
        lambda **kw: eah.wrap(inner(), **kw), called="wrap", then=repr, **values
    )


def make_statistics(rng: Rng, folder: Path) -> Input:
    rates = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2, 5)
    flags = torch.tensor([True, False, True, True])
    plain: list[tuple[Any, dict[str, Any]]] = [
        (statistics.estimate_mean, {"values": [0.0, 1.0, 2.0], "level": 0.95}),
        (
            statistics.compare_rates,
            {"before": (rates, ones), "after": (rates, ones), "level": 0.95}
            | {"resamples": 50, "seed": 0},
        ),
        (statistics.compare_outcomes, {"before": flags, "after": ~flags}),
        (statistics.adjust_holm, {"p_values": [0.01, 0.5]}),
        (statistics.estimate_odds, {"gained": 3, "lost": 1, "level": 0.95}),
        (statistics.cohens_h, {"before": rates, "after": rates}),
        (statistics.resample_sums, {"columns": rates, "resamples": 20, "seed": 0}),
        (
            statistics.percentile_effect,
            {"estimate": 0.5, "samples": rates[0], "level": 0.95, "n": 5},
        ),
        (Draws, {"level": 0.95, "resamples": 100, "seed": 0}),
    ]
    function, base = pick(rng, plain)
    values = change(rng, base)
    return input_of(function, may_be_nan=UNDETERMINED, **values)


def make_toy(rng: Rng, folder: Path) -> Input:
    scene = toy.draw_scene(0)
    there = scene.objects[0]
    plain: list[tuple[Any, dict[str, Any]]] = [
        (toy.draw_scene, {"seed": 0, "split": "test", "world": None, "objects": None}),
        (toy.draw_scenes, {"seeds": [0, 1], "split": "test", "world": None}),
        (toy.without_object, {"scene": scene, "name": there}),
        (toy.with_object_swapped, {"scene": scene, "name": there, "by": "fish"}),
        (toy.with_object_moved, {"scene": scene, "name": there, "left": 3, "top": 0}),
        (
            toy.with_object_recoloured,
            {"scene": scene, "name": there, "colour": "pink", "accent": None},
        ),
        (
            toy.with_companions_turned,
            {"scene": scene, "name": there, "group": "kitchen"},
        ),
        (
            toy.World,
            {"prior": 0.85, "difficulty": 0.5, "image_size": 80, "patch_size": 8},
        ),
        (
            toy.questions_for,
            {"scene": scene, "sampling": "random", "pairs": 1, "seed": 0},
        ),
        (toy.objects_in, {"text": odd_text(rng)}),
        (toy.prompt_for, {"text": odd_text(rng), "image_tokens": 1}),
        (toy.toy_path, {"name": "seed-0"}),
        (language.caption_of, {"objects": ["cup"]}),
        (language.ask_for, {"name": "cup"}),
        (
            benchmarks.build_pope_questions,
            {"objects": {"a": ["cup"], "b": ["boat", "fish"]}, "sampling": "random"}
            | {
                "pairs": 1,
                "n_images": None,
                "seed": 0,
                "template": "Is there a {} here?",
            },
        ),
        (benchmarks.make_vocabulary, {"groups": [["cup", "mug"]], "pairs": None}),
    ]
    function, base = pick(rng, plain)
    return input_of(function, **change(rng, base))


TARGETS = {
    "settings": Target(make_settings, 14_000),
    "settings.presets": Target(make_preset, 3_000),
    "settings.files": Target(make_from_dict, 5_000),
    "settings.conditions": Target(make_condition, 4_000),
    "settings.items": Target(make_item, 1_500),
    "settings.on_a_model": Target(make_check, 1_500),
    "keywords": Target(make_keywords, 1_500),
    "statistics": Target(make_statistics, 4_000),
    "toy": Target(make_toy, 3_000),
}
