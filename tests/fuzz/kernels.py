"""Kernels: tensors of wrong types, shapes, places and numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eah_interp import kernels
from eah_interp.kernels import patterns, replacements, sinks
from tests.fuzz.harness import Input, Target
from tests.fuzz.values import Rng, change, input_of, pick

COPIED = frozenset({""})
"""What only moves or mixes its input lets NaN through, and says so."""

MOVERS = ("broadcast_pattern", "broadcast_queries", "broadcast_keys", "pattern_blocks")
MOVERS += ("mix_values", "mean_pattern", "uniform_pattern", "shuffled_pattern")


def tensors(rng: Rng) -> dict[str, Any]:
    torch.manual_seed(int(rng.integers(2**31)))
    batch, heads, groups, size, width = 2, 4, int(pick(rng, (1, 2, 4))), 6, 3
    dtype = pick(rng, (torch.float32, torch.float32, torch.bfloat16, torch.float16))
    image = torch.zeros(batch, size, dtype=torch.bool)
    image[:, 1:4] = True
    tokens = torch.ones(batch, size, dtype=torch.bool)
    visible = tokens.new_ones(size, size).tril().expand(batch, 1, size, size)
    scores = torch.randn(batch, heads, size, size).masked_fill(~visible, -torch.inf)
    return {
        "pattern": scores.softmax(-1).to(dtype),
        "queries": torch.randn(batch, heads, size, width).to(dtype),
        "keys": torch.randn(batch, groups, size, width).to(dtype),
        "values": torch.randn(batch, groups, size, width).to(dtype),
        "image_mask": image,
        "token_mask": tokens,
        "visible": visible.clone(),
        "donors": torch.tensor([1, -1]),
        "recipients": torch.rand(batch, heads) > 0.5,
        "density": torch.rand(batch, heads),
        "sink_logits": torch.randn(1, heads, 1, 1),
        "hidden": torch.randn(batch, size, 5),
        "priority": torch.rand(batch, size),
        "column_scores": torch.rand(batch, heads, size),
        "unit": torch.ones(batch, 1, size),
    }


Makes = dict[str, tuple[Callable[..., Any], dict[str, Any]]]


def calls(t: dict[str, Any]) -> Makes:
    """List what is called with what, where everything is right."""
    masks = {"image_mask": t["image_mask"], "token_mask": t["token_mask"]}
    attention = {"queries": t["queries"], "keys": t["keys"], "mask": None}
    attention |= {
        "token_mask": None,
        "scale": None,
        "softcap": None,
        "sink_logits": None,
    }
    attention |= {"block": None}
    moved = {"donors": t["donors"], "recipients": t["recipients"]}
    return {
        "score_columns": (
            kernels.score_columns,
            dict(pattern=t["pattern"], **masks, visible=None, definition="visible"),
        ),
        "stream_column_scores": (
            kernels.stream_column_scores,
            attention | masks | {"definition": "official"},
        ),
        "pattern_blocks": (
            lambda **kw: [part.weights for part in patterns.pattern_blocks(**kw)],
            attention,
        ),
        "mix_values": (
            patterns.mix_values,
            attention | {"values": t["values"], "change": lambda part: part.weights},
        ),
        "broadcast_pattern": (
            kernels.broadcast_pattern,
            {"pattern": t["pattern"], **moved},
        ),
        "broadcast_queries": (
            kernels.broadcast_queries,
            {"queries": t["queries"], **moved},
        ),
        "broadcast_keys": (
            kernels.broadcast_keys,
            {
                "keys": t["keys"],
                "donors": t["donors"],
                "n_heads": 4,
                "recipients": None,
            },
        ),
        "choose_donors": (
            kernels.choose_donors,
            {"density": t["density"], "rule": "densest", "gamma": None, "seed": 0}
            | {"head_0": "eligible"},
        ),
        "dense_heads": (sinks.dense_heads, {"density": t["density"], "gamma": 0.5}),
        "ColumnScores": (
            lambda scores, unit, columns, beta: [
                kernels.ColumnScores(scores, unit, columns).density(beta),
                kernels.ColumnScores(scores, unit, columns).sinks(beta),
            ],
            {
                "scores": t["column_scores"],
                "unit": t["unit"],
                "columns": t["image_mask"],
            }
            | {"beta": 1.0},
        ),
        "mean_pattern": (replacements.mean_pattern, {"pattern": t["pattern"]}),
        "uniform_pattern": (
            replacements.uniform_pattern,
            {
                "pattern": t["pattern"],
                "image_mask": t["image_mask"],
                "visible": t["visible"],
            },
        ),
        "shuffled_pattern": (
            replacements.shuffled_pattern,
            {
                "pattern": t["pattern"],
                "donors": t["donors"],
                "image_mask": t["image_mask"],
            }
            | {"visible": t["visible"], "priority": t["priority"]},
        ),
        "find_visible": (patterns.find_visible, {"mask": t["visible"].float()}),
        "rows_per_block": (
            patterns.rows_per_block,
            {"queries": t["queries"], "keys": t["keys"], "block": None},
        ),
    }


def variants(rng: Rng, name: str, base: dict[str, Any], t: dict[str, Any]) -> None:
    """Sometimes give what is left out by default."""
    if "definition" in base:
        base["definition"] = pick(rng, ("visible", "paper", "official"))
    if "sink_logits" in base and rng.random() < 0.3:
        base["sink_logits"] = t["sink_logits"]
    if "mask" in base and rng.random() < 0.3:
        base["mask"] = t["visible"]
    if name == "score_columns" and rng.random() < 0.3:
        base["visible"] = t["visible"]
    if name == "choose_donors":
        base["rule"] = pick(rng, ("densest", "sparsest", "random", 1))


def make_exported(rng: Rng, folder: Path) -> Input:
    return make(rng, list(calls(tensors(rng)))[:8])


def make_others(rng: Rng, folder: Path) -> Input:
    return make(rng, list(calls(tensors(rng)))[8:])


def make(rng: Rng, names: list[str]) -> Input:
    t = tensors(rng)
    name = pick(rng, names)
    function, base = calls(t)[name]
    variants(rng, name, base, t)
    allowed = COPIED if name in MOVERS else frozenset()
    values = change(rng, base)
    if callable(values.get("change")):  # what a user's own function raises is theirs
        values["change"] = base["change"]
    return input_of(function, may_be_nan=allowed, called=name, **values)


TARGETS = {
    "kernels": Target(make_exported, 14_000),
    "kernels.others": Target(make_others, 4_000),
}
