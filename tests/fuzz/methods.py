"""Every method as settings and in a run, kinds of sinks, and what finds heads."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import eah_interp as eah
from eah_interp import finders
from eah_interp.interventions import (
    METHODS,
    SinkEdit,
    SinkRule,
    Steer,
    find_sinks,
    map_tower,
)
from eah_interp.studies.nulls import NearTie, RandomDraw
from eah_interp.toy import draw_scene
from tests.fuzz.attributions import OF_ANY, close_figures, nothing
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import QUESTION, ask, model, odd_encoding, picture
from tests.fuzz.values import Rng, change, input_of, odd, pick, show

GIVEN: dict[str, dict[str, Any]] = {
    "ADHH": {"heads": ["L1H0", "L3H2"]},
    "PIH": {"heads": ["L1H0", (3, 2)]},
    "ScaleHeads": {"heads": ["L1H0"], "factor": 0.5},
    "VHR": {"heads": ["L1H0", "L4H3"], "layers": "1:"},
    "Ablation": {"heads": ["L1H0"]},
    "VAR": {"sink_dims": (1,)},
    "RandomDraw": {"what": "heads"},
}
"""What a class does not do without."""

OF_COLUMNS = OF_ANY | {"tower_norms", "norms", "norm_thresholds", "tower_scores"}
OF_COLUMNS |= {"language_scores", "attention", "shares", "learned", "tower_norm"}
OF_COLUMNS |= {"from_images", "from_words", "mass", *("left", "top", "right", "bottom")}
"""What is NaN at columns that are no image columns, and of heads without such sinks."""

SETTINGS = (eah.EAH, eah.PAI, eah.VAR, eah.Ablation, SinkEdit, *METHODS.values())
SMALL = (SinkRule, NearTie, RandomDraw)


def base_of(kind: type[Any]) -> dict[str, Any]:
    """Return every setting of a class as it stands, and what has to be given."""
    fields = dataclasses.fields(kind)
    plain = {
        one.name: one.default
        for one in fields
        if one.init and one.default is not dataclasses.MISSING
    }
    return plain | GIVEN.get(kind.__name__, {})


@functools.cache
def steer() -> Steer:
    """Return settings with directions that were found."""
    vectors = finders.find_directions(model(), picture(), QUESTION)
    return Steer(vectors=vectors)


def make_method(rng: Rng, folder: Path) -> Input:
    """Settings, their round trip, and whether they fit a model."""
    kind = pick(rng, [*SETTINGS, *SMALL, Steer])
    values = change(rng, base_of(kind), most=3)
    if kind in SMALL:
        return input_of(kind, then=lambda made: [repr(made), hash(made)], **values)

    def use(made: Any) -> Any:
        model().check(made)
        written = made.to_dict()
        again = kind.from_dict(json.loads(json.dumps(written)))
        return [repr(made), again == made, written, hash(made)]

    return input_of(kind, then=use, **values)


def make_run(rng: Rng, folder: Path) -> Input:
    """A method whose settings may be odd, in a trace or a generation."""
    kind = pick(rng, [*SETTINGS, Steer])
    base = base_of(kind)
    if kind is Steer:
        base["vectors"] = steer().vectors
    values = change(rng, base, most=1)
    given = (picture(), QUESTION)
    if rng.random() < 0.3:
        given = ask(rng) if rng.random() < 0.5 else (odd_encoding(rng),)  # type: ignore[assignment]
    in_trace = rng.random() < 0.6
    tower: Any = "vision" if rng.random() < 0.3 else "language"
    if rng.random() < 0.03:
        tower = odd(rng)

    def call() -> Any:
        made = kind(**values)
        if not in_trace:
            twin = eah.edit(model(), made, tower=tower)
            return twin.describe(*given, max_new_tokens=2)
        with torch.no_grad(), model().trace(*given):
            eah.intervene(model(), made, tower=tower)
            logits = model().logits.save()
        return logits

    how = f"{'trace' if in_trace else 'describe'}, tower={show(tower)}"
    shown = input_of(kind, **values).shown
    return Input(call, f"{how}: {shown} on {input_of(print, *given).shown}")


@functools.cache
def found() -> Any:
    return find_sinks(model(), [picture(), picture()], QUESTION)


@functools.cache
def mapped() -> Any:
    return map_tower(model(), picture(), QUESTION)


@functools.cache
def frame() -> Any:
    return eah.attribution.attribute_patches(
        model(), [picture(), picture()], QUESTION, objects=["boat"]
    ).frame()


def make_kinds(rng: Rng, folder: Path) -> Input:
    """`find_sinks`, `map_tower`, donors by kind, and what their results do."""
    calls: list[Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]] = [
        lambda: (find_sinks, (model(), *ask(rng)), {}),
        lambda: (find_sinks, (model(), odd_encoding(rng)), {}),
        lambda: (
            find_sinks,
            (model(), picture(), QUESTION),
            {"rule": SinkRule(), "beta": 1.0},
        ),
        lambda: (map_tower, (model(), *ask(rng)), {}),
        lambda: (map_tower, (model(), odd_encoding(rng)), {}),
        lambda: (
            eah.score_sinks,
            (model(), picture(), QUESTION),
            {"columns": "tower", "layers": None},
        ),
        lambda: (
            eah.score_sinks,
            (model(), *ask(rng)) if rng.random() < 0.5 else (model(), picture()),
            {"tower": "vision", "layers": None, "beta": None, "definition": "visible"},
        ),
        lambda: (found().mask, (), {"kind": "tower", "factor": 1.0}),
        lambda: (found().kind_of, (), {"column": 20, "item": 1}),
        lambda: (found().label, (), {"frame": frame()}),
        lambda: (found().sensitivity, (), {"factors": [0.5, 2]}),
        lambda: (found().plot_norms, (), {"item": 0, "ax": None}),
        lambda: (found().plot, (), {"image": picture(), "item": 0, "ax": None}),
        lambda: (mapped().columns_of, (), {"token": 3}),
        lambda: (mapped().tokens_of, (), {"column": 20, "item": 0}),
        lambda: (mapped().plot, (), {"item": 0, "ax": None}),
    ]
    function, args, options = pick(rng, calls)()
    who = (odd(rng), *args[1:]) if args and rng.random() < 0.03 else args
    named = getattr(function, "__qualname__", "")
    then = nothing if "plot" in named else _look
    close_figures()
    return input_of(
        function,
        *who,
        then=then,
        may_be_nan=OF_COLUMNS,
        **(change(rng, options) if options else {}),
    )


def _look(made: Any) -> Any:
    return [made, made.frame(), repr(made)] if hasattr(made, "frame") else made


def make_finder(rng: Rng, folder: Path) -> Input:
    """Each finder over two scenes, with odd settings or odd items."""
    small = {"batch_size": 8, "progress": False}
    own: dict[str, dict[str, Any]] = {
        "find_image_heads": {},
        "find_hallucination_heads": {
            "objects": ["boat", "cup"],
            "truth": [["boat"], ["cup"]],
            "caption": None,
            "how": "zero",
            "layers": [3],
        },
        "find_prompt_heads": {
            "told": ["boat", "cup"],
            "true": ["cup", "boat"],
            "how": "mean",
            "layers": [3],
        },
        "find_localisation_heads": {"chosen": 2},
        "score_sink_dims": {"at": "image"},
        "find_directions": {"per_item": False},
        "find_sink_dims": {"k": 2},
    }
    name = pick(rng, list(own))
    options = own[name] | (small if name != "find_sink_dims" else {})
    images = [draw_scene(1).pil(), draw_scene(2).pil()]
    given: tuple[Any, ...] = (images, [QUESTION, QUESTION])
    if rng.random() < 0.3:
        given = ask(rng)
    function = getattr(finders, name)
    return input_of(
        function,
        model(),
        *given,
        called=name,
        then=_look,
        may_be_nan=OF_ANY,
        **change(rng, options),
    )


TARGETS = {
    "methods": Target(make_method, 6_000),
    "methods.runs": Target(make_run, 3_000),
    "sink_kinds": Target(make_kinds, 2_500),
    "finders": Target(make_finder, 1_500),
}
