"""The folder of a finished model: weights, processor, log and card."""

import dataclasses
import hashlib
import itertools
import json
import os
import platform
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eah_interp.toy.card import write_card
from eah_interp.toy.recipe import Recipe, Run
from eah_interp.toy.scenes import draw_scenes
from eah_interp.toy.tokenizer import build_processor
from eah_interp.toy.world import Split, World

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


def write_folder(
    model: "LlavaForConditionalGeneration",
    *,
    recipe: Recipe,
    run: Run,
    log: list[dict[str, Any]],
) -> None:
    """Evaluate the model, and write it, its processor, the log and the card.

    Args:
        model: The trained model.
        recipe: What it was trained by.
        run: Where to write, and how many scenes to evaluate on.
        log: Metrics of the training steps.
    """
    # Half the bytes in float16; the config says float32, which is what it loads as.
    halves = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(run.out, state_dict=halves)
    build_processor(recipe.world).save_pretrained(run.out)
    splits: tuple[Split, ...] = ("validation", "test")
    results = {
        split: measure_folder(
            run.out, n_scenes=run.test_scenes, split=split, world=recipe.world
        )
        for split in splits
    }
    seconds: dict[str, float] = defaultdict(float)
    for line in log:
        seconds[line["stage"]] += line["seconds"]
    cuda = torch.cuda.get_device_name() if run.device.startswith("cuda") else None
    record: dict[str, Any] = {
        "name": run.out.name,
        "command": run.command,
        "minutes": round(sum(seconds.values()) / 60, 1),
        "seconds_by_stage": {name: round(s) for name, s in seconds.items()},
        "hardware": {
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "device": cuda or run.device,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
        "sha256": _hash(run.out / "model.safetensors"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": dataclasses.asdict(recipe),
        "evaluation": results,
        "steps": log,
    }
    path = run.out / "training_log.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    (run.out / "README.md").write_text(write_card(record))


def measure_folder(
    folder: Path, *, n_scenes: int, split: Split, world: World
) -> dict[str, dict[str, float]]:
    """Put the toy benchmark to a finished model, as it loads from its folder.

    Args:
        folder: Where the model lies.
        n_scenes: The first so many scenes of the split.
        split: Where scenes come from.
        world: Knobs of the scenes.

    Returns:
        Metrics by kind of question, of all questions ("all"), and of the captions.
    """
    from eah_interp.benchmarks import run_toy_benchmark
    from eah_interp.lvlm import load

    scenes = draw_scenes(range(n_scenes), split=split, world=world)
    table = run_toy_benchmark(load(str(folder)), scenes).frame()
    rows = zip(table.kind, table.metric, table.value, strict=True)
    return {
        kind: {metric: round(value, 3) for _, metric, value in group}
        for kind, group in itertools.groupby(rows, key=lambda row: str(row[0]))
    }


_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def processor_name() -> str:
    """Name the CPU where the system tells, else its architecture."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()
