"""The heads that direct attribution names matter, more than random ones do."""

import json
from pathlib import Path

import pytest
import torch

import eah_interp as eah
from eah_interp.statistics import estimate_mean

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "attribution"))


def test_random_heads_are_as_many_and_others():
    from top_heads import K, draw_heads

    top = torch.zeros(5, 4, 8, dtype=torch.bool)
    top[:, 1, :2] = top[:, 3, 5] = True
    for same_layers in (False, True):
        drawn = draw_heads(top, seed=0, same_layers=same_layers)
        assert (drawn.sum((1, 2)) == K).all()
        assert not (drawn & top).any()
        assert torch.equal(drawn.sum(-1), top.sum(-1)) == same_layers
    assert not torch.equal(
        draw_heads(top, seed=0, same_layers=True),
        draw_heads(top, seed=1, same_layers=True),
    )


@pytest.mark.slow
def test_ablated_top_heads_lower_the_logit_more_than_random_heads_do():
    from top_heads import choose, measure

    model = eah.load()
    drops = measure(model, *choose(model, 100)["present"])
    assert len(drops["top"]) == 100
    for control in ("random", "random, same layers"):
        paired = estimate_mean((drops["top"] - drops[control]).tolist())
        assert paired.low > 1.0
        assert abs(estimate_mean(drops[control].tolist()).estimate) < 0.5


def test_the_record_says_so_of_every_toy():
    record = json.loads((DOCS / "attribution.json").read_text())
    assert list(record["toys"]) == ["seed-0", "seed-1", "seed-2"]
    for kinds in record["toys"].values():
        for found in kinds.values():
            assert found["top - random"]["low"] > 0
            assert found["top - random, same layers"]["low"] > 0


@pytest.mark.slow
def test_the_record_is_measured_again():
    from top_heads import run

    record = json.loads((DOCS / "attribution.json").read_text())
    again = run(eah.load("toy:seed-0"), record["scenes"])
    for kind, found in again.items():
        for name, effect in found.items():
            expected = record["toys"]["seed-0"][kind][name]["estimate"]
            assert effect["estimate"] == pytest.approx(expected, abs=0.02)
