"""Remake the toy's model card: `python docs/toy/model_card.py`.

Measures every committed toy under every condition (tables in --runs, kept between
runs: a stopped run goes on where it was), tests the paper's four claims on them, and
writes `docs/toy.json`, `docs/toy.md` and the figures in `docs/images/`.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path

import torch
from claims import (
    compare_conditions,
    compare_donors,
    compare_priors,
    density_and_hallucination,
    density_by_head,
    early_against_deep,
    level_of,
    sinks_by_layer,
)
from conditions import PLAIN, list_conditions
from measure import measure_toy, read
from page import write_page
from pictures import draw_effects, draw_sinks_by_head

from eah_interp.toy import TOYS, toy_path
from eah_interp.toy.training.folder import processor_name

DOCS = Path(__file__).parents[1]
SEEDS = tuple(name for name in TOYS if name.startswith("seed-"))


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--toys", nargs="+", default=list(TOYS), choices=TOYS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument(
        "--measure-only", action="store_true", help="write tables, not the card"
    )
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for name in given.toys:
        measure_toy(
            name,
            n_scenes=given.scenes,
            folder=given.runs,
            plain_only=name not in SEEDS,
        )
    if given.measure_only:
        return
    seeds = [read(given.runs, name, n_scenes=given.scenes) for name in SEEDS]
    low = read(given.runs, "low-prior", n_scenes=given.scenes)
    logs = {
        name: json.loads((toy_path(name) / "training_log.json").read_text())
        for name in TOYS
    }
    n_layers = logs["seed-0"]["recipe"]["architecture"]["n_layers"]
    conditions = list_conditions(n_layers)
    patched = [name for name in conditions if name != PLAIN]
    levels = {
        name: {
            metric: level_of(runs, PLAIN, metric)
            for metric in ("CHAIR_S", "CHAIR_I", "false positives", "recall")
        }
        for name, runs in (("seeds", seeds), ("low-prior", [low]))
    }
    record = {
        "command": f"python docs/toy/model_card.py --scenes {given.scenes}",
        "versions": {
            name: metadata.version(name)
            for name in ("torch", "transformers", "nnsight", "scipy")
        },
        "hardware": processor_name(),
        "scenes": given.scenes,
        "toys": {
            name: {key: value for key, value in log.items() if key != "steps"}
            for name, log in logs.items()
        },
        "plain": levels,
        "prior": compare_priors(seeds, low),
        "sinks": sinks_by_layer(seeds),
        "early against deep": early_against_deep(seeds),
        "density by head": density_by_head(seeds[0]),
        "density and hallucination": {
            f"beta {beta:g}": density_and_hallucination(seeds, beta=beta)
            for beta in (1.0, 2.0)
        },
        "effects": compare_conditions(seeds, patched),
        "donors": compare_donors(seeds, n_layers),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False)
    (given.out / "toy.json").write_text(text + "\n")
    (given.out / "images").mkdir(exist_ok=True)
    draw_effects(record, given.out / "images/toy-effects.png")
    draw_sinks_by_head(record, given.out / "images/toy-sinks.png")
    (given.out / "toy.md").write_text(write_page(record))


if __name__ == "__main__":
    main()
