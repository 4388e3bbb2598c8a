"""What wrote `tests/saved/found`: `python -m tests.saved.make_found`, run once.

Results of finders, and settings that hold what was found, as users have saved them
since there are any. `tests/test_saved_found.py` shows that they can still be read. As
for `make.py`: what later code would write says nothing of older files, so that it
refuses to write over them.
"""

import json
import subprocess
from typing import Any

import torch

import eah_interp as eah
from eah_interp.finders import DimScores, HeadScores
from eah_interp.interventions import Directions, HeadList
from eah_interp.studies import Condition
from eah_interp.studies.nulls import NearTie, RandomDraw
from tests.saved import plan

HERE = plan.HERE / "found"
EXPECTED_FILE, SETTINGS_FILE = HERE / "expected.json", HERE / "settings.json"
DRAWS_FILE = HERE.with_name("found_draws.json")
ORIGIN = {
    "model": "LlavaForConditionalGeneration (mine)",
    "weights": "1a073e0d0576b8f2",
}


def draw(*shape: int) -> Any:
    """Read the numbers of a shape as they were drawn when the files were saved.

    `torch.randn(*shape)` from seed 0: its last bits depend on the processor's kernels.
    """
    name = "x".join(map(str, shape))
    return torch.tensor(json.loads(DRAWS_FILE.read_text())[name]).reshape(shape)


def make_results() -> dict[str, Any]:
    """Make a result of every form that finders give."""
    common = {"layers": (0, 3), **ORIGIN}
    return {
        "heads-by-sign": HeadScores(
            finder="prompt",
            measure="fall of the told word's margin, mean ablation",
            scores=draw(5, 2, 3),
            items=torch.arange(5),
            labels="signs",
            before=draw(5),
            **common,
        ),
        "heads-by-group": HeadScores(
            finder="hallucination",
            measure="fall of absent minus present objects, zero ablation",
            scores=draw(6, 2, 3),
            items=torch.arange(3).repeat_interleave(2),
            labels="groups",
            group=torch.tensor([True, False] * 3),
            **common,
        ),
        "heads-by-head": HeadScores(
            finder="image",
            measure="distance of the output without the image",
            scores=draw(4, 2, 3),
            items=torch.arange(4),
            labels="heads",
            **common,
        ),
        "dimensions": DimScores(
            activation=draw(4, 8).abs(),
            massive=(draw(4, 8) > 1).float(),
            at="images",
            **ORIGIN,
        ),
        "directions": Directions(draw(1, 2, 4), (0, 3), **ORIGIN),
        "directions-by-item": Directions(
            draw(3, 2, 4), (0, 3), per_item=True, **ORIGIN
        ),
    }


def make_conditions() -> list[Condition]:
    """Make conditions whose settings hold what was found, and their nulls."""
    heads = HeadList(("L3H2", "L0H1"), **ORIGIN)
    found = make_results()
    steer = eah.Steer(vectors=found["directions"], scale=0.3, at="stream", layers=(3,))
    listed = {
        "ablation": eah.Ablation(heads=heads, how="mean"),
        "PIH": eah.PIH(heads=heads),
        "AD-HH": eah.ADHH(heads=heads),
        "steered": steer,
        "steered by item": eah.Steer(vectors=found["directions-by-item"], scale=-0.2),
        "VISTA": eah.Steer.vista(scale=0.17),
        "VHR": eah.VHR(by_item=[["L1H2"], ["L1H0", "L2H3"]]),
        "SPIN": eah.SPIN.paper(task="yes_no"),
        "random SPIN": eah.RandomSPIN(seed=3),
        "boost": eah.ColumnBoost(amount=0.4, growth="linear", rate=0.1),
        "heads-guided": eah.HeadsGuided.paper(),
        "scaled": eah.ScaleHeads(heads=("L1H1",), factor=0.5),
    }
    return [
        *(Condition(name, patch) for name, patch in listed.items()),
        Condition(
            "PIH, random heads 1",
            listed["PIH"],
            random=RandomDraw("heads", draw=0, seed=4),
            null_of="PIH",
        ),
        Condition("near tie", near_tie=NearTie(mass=0.3)),
        Condition("asked", ask="Yes.", decoding={"caption": {"do_sample": True}}),
    ]


def make() -> None:
    """Write everything, or refuse."""
    if HERE.exists():
        raise SystemExit(f"{HERE} was written before: leave it as it is")
    words = ["git", "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    expected: dict[str, Any] = {"commit": commit.strip()}
    for name, result in make_results().items():
        folder = result.save(HERE / name)
        (folder / "frame.parquet").unlink()
        expected[name] = {
            "class": type(result).__name__,
            "attributes": {
                key: plan.digest(one) for key, one in plan.describe(result).items()
            },
        }
    EXPECTED_FILE.write_text(json.dumps(expected, indent=1) + "\n")
    written = {one.name: one.to_dict() for one in make_conditions()}
    SETTINGS_FILE.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    make()
