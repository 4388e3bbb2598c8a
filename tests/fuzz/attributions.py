"""Attribution: every public function, its results' methods, and saved results."""

import functools
import shutil
from pathlib import Path
from typing import Any

import eah_interp as eah
from eah_interp import attribution
from eah_interp.results import Result
from eah_interp.studies import StudyRun
from eah_interp.toy import draw_scene
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import QUESTION, ask, model, odd_encoding, picture
from tests.fuzz.mutated import change_file
from tests.fuzz.values import Rng, change, input_of, odd, pick
from tests.made_results import MAKERS, Size, make
from tests.saved import plan

MAY_BE_NAN = frozenset(
    {"exact", "error", "errors", "correlation", "present", "density", "stability"}
)
"""What was not measured: exact effects of heads outside the sample, and their error.

Halves of one item say nothing of stability.
"""

OF_HEADS = frozenset({"new_values", "new_pattern", "new_scale"})
"""Columns of a table that components other than heads leave empty."""

MAY_BE_NAN |= OF_HEADS


def nothing(found: Any) -> None:
    """Look no further: a figure, or a folder."""


ASKED: dict[str, Any] = {
    "objects": ["boat"],
    "metric": "logit",
    "caption": None,
    "synonyms": None,
    "truth": None,
}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "attribute_heads": {"patch": None, "sources": False, "batch_size": None},
    "logit_lens": {"patch": None, "batch_size": None},
    "attribute_patches": {"patch": None, "method": "contribution", "batch_size": 1},
    "patch_heads": {
        "source": eah.EAH(),
        "target": "plain",
        "heads": ["L1H0"],
        "what": "output",
    }
    | {
        "together": False,
        "batch_size": 8,
        "source_images": None,
        "source_prompts": None,
        "positions": None,
        "tower": "language",
    },
    "ablate_heads": {
        "how": "zero",
        "target": "plain",
        "heads": [(1, 0)],
        "together": False,
    }
    | {"batch_size": 8, "positions": None, "tower": "language"},
    "approximate_heads": {"source": eah.EAH(), "target": "plain", "what": "output"}
    | {
        "method": "attribution_patching",
        "n_steps": 2,
        "check": 1,
        "seed": 0,
        "batch_size": 8,
    },
    "trace_mediators": {"eah": None, "nodes": [(2, 0)], "batch_size": 8},
    "attribute_recipients": {
        "eah": None,
        "method": "alone",
        "n_permutations": 1,
        "seed": 0,
    }
    | {"batch_size": 16},
    "patch_paths": {
        "receivers": ["L2H1.q", "logit"],
        "senders": ["L1H0", "image"],
        "source": "mean",
        "source_images": None,
        "source_prompts": None,
        "final_norm": "recomputed",
        "seed": 0,
        "batch_size": 8,
    },
    "approximate_paths": {
        "receivers": ["L2H1", "logit"],
        "senders": ["L1H0", "image"],
        "source": "mean",
        "method": "eap",
        "n_steps": 2,
        "check": 3,
        "seed": 0,
        "batch_size": 8,
    },
    "patch_nodes": {
        "nodes": ["layers_output[1]", "L1H0"],
        "positions": ["image", "last"],
        "source": "mean",
        "source_images": None,
        "seed": 0,
        "batch_size": 8,
    },
    "find_circuits": {
        "edges": None,
        "source": "plain",
        "source_images": None,
        "source_prompts": None,
        "shares": (0.01, 1.0),
        "chosen": 0.01,
        "n_random": 1,
        "batch_size": 32,
        "seed": 0,
    },
    "pose": {},
    "pose_pairs": {"source_images": None, "source_prompts": None},
}
OTHERS: dict[str, dict[str, Any]] = {
    "read_patterns": {
        "heads": ["L1H0"],
        "top": None,
        "mean": False,
        "words": False,
        "query": None,
        "patch": None,
        "definition": None,
        "beta": None,
        "max_new_tokens": 2,
        "tower": "language",
    },
    "score_broadcast": {"eah": None, "layers": None},
}


def use(found: Any) -> Any:
    """Look at a result as a reader does."""
    return [found, found.frame(), repr(found)] if isinstance(found, Result) else None


PAIRED = ("find_circuits", "pose_pairs", "patch_paths", "patch_nodes", "patch_heads")
"""What may be given a counterpart to the picture."""


@functools.cache
def counterpart() -> Any:
    return draw_scene(1).pil()


@functools.cache
def edges() -> Any:
    """Return every edge of the toy, approximated once."""
    given = {"objects": ["boat"], "source_images": counterpart(), "check": 3}
    return attribution.approximate_paths(model(), picture(), QUESTION, **given)


def _choose(rng: Rng, name: str) -> dict[str, Any]:
    """Choose what a function is asked: usual values, of which some go together."""
    options = dict(FUNCTIONS[name] | ASKED if name in FUNCTIONS else OTHERS[name])
    if name in FUNCTIONS and rng.random() < 0.3:
        options["caption"] = "There is a boat."
    if "patch" in options and rng.random() < 0.3:
        options["patch"] = eah.EAH()
    if "tower" in options and rng.random() < 0.3:
        options["tower"] = "vision"
        if "query" in options:
            options["query"] = pick(rng, ["all", 0, [0, -1]])
    if "positions" in options and rng.random() < 0.2:
        options["positions"] = pick(rng, ["last", "object", "image", [-1, 4]])
    if name in PAIRED and rng.random() < 0.7:
        options["source_images"] = counterpart()
    return options


def make_attribution(rng: Rng, folder: Path) -> Input:
    name = pick(rng, [*FUNCTIONS, *OTHERS])
    options = _choose(rng, name)
    changed = change(rng, options)
    if name == "find_circuits" and changed["edges"] is None:
        changed["edges"] = edges()
    if "metric" in changed and rng.random() < 0.1:
        changed |= {"metric": "yes_no", "objects": []}
    given: tuple[Any, ...] = (picture(), QUESTION)
    kind = rng.random()
    if kind < 0.15:
        given = ask(rng)
    elif kind < 0.25:
        given = (odd_encoding(rng),)
    function = getattr(attribution, name)
    who = odd(rng) if rng.random() < 0.03 else model()
    nan = MAY_BE_NAN
    return input_of(
        function, who, *given, then=use, called=name, may_be_nan=nan, **changed
    )


@functools.cache
def result(name: str) -> Any:
    return Result.load(plan.RESULTS / name)


RESULTS = sorted(path.name for path in plan.RESULTS.iterdir())
METHODS: dict[str, dict[str, Any]] = {
    "top": {"k": 3},
    "plot_logits": {"present": None},
    "plot_top": {"target": 0, "k": 3},
    "list_logits": {"present": None},
    "plot_targets": {},
    "curves": {"target": 0, "of": "logit"},
    "summed": {"target": 0, "heads": None, "run": "plain", "sign": "both"},
    "grid": {"target": 0},
    "row": {"head": "L3H7", "item": 0, "query": -1, "run": "plain"},
    "density": {"run": "patched"},
    "save": {},
    "panels": {"target": 0},
    "plot": {"ax": None},
    "average": {
        "of": None,
        "split": "present",
        "k": 3,
        "clusters": ["a", "b", "a", "c"],
        "level": 0.9,
        "resamples": 50,
        "seed": 0,
    },
}


def make_method(rng: Rng, folder: Path) -> Input:
    found = result(pick(rng, RESULTS))
    name = pick(rng, [one for one in METHODS if hasattr(found, one)])
    if name == "save":
        return input_of(found.save, odd(rng), then=nothing)
    options = change(rng, METHODS[name]) if METHODS[name] else {}
    name = f"{type(found).__name__}.{name}"
    method = getattr(found, name.rpartition(".")[2])
    then = nothing if "plot" in name else None
    nan = MAY_BE_NAN
    try:
        if name.endswith("average"):  # of a single image there is no interval
            nan |= {"estimate", "low", "high"}
        return input_of(method, called=name, may_be_nan=nan, then=then, **options)
    finally:
        close_figures()


def close_figures() -> None:
    """Close what was drawn."""
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


KINDS = [kind for kind in MAKERS if kind is not StudyRun]
OF_ANY = MAY_BE_NAN | {"value", "estimate", "low", "high", "yes", "no", "weights"}
OF_ANY |= {"margin", "weight", "change", "level"}
OF_ANY |= {"score", "rank_first", "rank_second", "p", "cured"}  # of too few items
OF_ANY |= {"stability", "stability_low", "stability_high"}


def make_saved(rng: Rng, folder: Path) -> Input:
    """A saved result of which a file was changed, cut, lost or another's."""
    name = pick(rng, RESULTS)
    copy = folder / name
    if rng.random() < 0.5:
        make(pick(rng, KINDS), Size(items=1, layers=1)).save(copy)
    else:
        shutil.copytree(plan.RESULTS / name, copy)
    way = int(rng.integers(8))
    files = [copy / "result.json", copy / "tensors.parquet"]
    one = pick(rng, files)
    said = f"{one.name} is gone"
    if way == 0:
        one.unlink()
    elif way == 1:
        other = plan.RESULTS / pick(rng, RESULTS) / one.name
        shutil.copy(other, one)
        said = f"{one.name} of another"
    elif way == 2:
        one.unlink()
        one.mkdir()
        said = f"{one.name} is a folder"
    else:
        said = change_file(rng, one)
    given: Any = odd(rng) if rng.random() < 0.03 else copy
    found = input_of(Result.load, given, then=use)
    return Input(found.call, f"{found.shown} [{said}]", OF_ANY)


TARGETS = {
    "attribution": Target(make_attribution, 4_500),
    "attribution.results": Target(make_method, 2_500),
    "attribution.saved": Target(make_saved, 4_000),
}
