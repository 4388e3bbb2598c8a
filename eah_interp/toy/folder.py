"""The folder of a finished model: weights, processor, log and card."""

import dataclasses
import json
import os
import platform
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eah_interp.toy.card import write_card
from eah_interp.toy.evaluate import evaluate
from eah_interp.toy.recipe import Recipe, Run
from eah_interp.toy.tokenizer import build_processor

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
    processor = build_processor(recipe.world)
    model.save_pretrained(run.out)
    processor.save_pretrained(run.out)
    results = {
        split: dataclasses.asdict(
            evaluate(
                model,
                processor,
                n_scenes=run.test_scenes,
                split=split,
                world=recipe.world,
            )
        )
        for split in ("validation", "test")
    }
    seconds: dict[str, float] = defaultdict(float)
    for line in log:
        seconds[line["stage"]] += line["seconds"]
    cuda = torch.cuda.get_device_name() if run.device.startswith("cuda") else None
    record: dict[str, Any] = {
        "command": run.command,
        "minutes": round(sum(seconds.values()) / 60, 1),
        "seconds_by_stage": {name: round(s) for name, s in seconds.items()},
        "hardware": {
            "processor": _processor_name(),
            "threads": torch.get_num_threads(),
            "device": cuda or run.device,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": dataclasses.asdict(recipe),
        "evaluation": results,
        "steps": log,
    }
    path = run.out / "training_log.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    (run.out / "README.md").write_text(write_card(record))


_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def _processor_name() -> str:
    """Name the CPU where the system tells, else its architecture."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()
