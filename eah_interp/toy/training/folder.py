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

from eah_interp.toy.language import build_processor
from eah_interp.toy.scenes import draw_scenes
from eah_interp.toy.training.recipe import Recipe, TrainingRun
from eah_interp.toy.world import Split, World

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

# ---- The short model card that lies beside the weights, written from the training log.


_CARD = """# A toy LVLM: {name}

A LLaVA (CLIP vision tower, Llama decoder) of {parameters:,} parameters that looks at
procedurally drawn scenes of twenty everyday objects in five groups, describes them and
answers yes/no questions about them. It is made to be studied, not used: it
hallucinates objects that usually come along with those it sees, and the truth of every
scene is known.

- Decoder: {n_layers} layers, {n_heads} heads on {n_kv_heads} key/value heads, width
  {d_model}.
- Picture: {side} x {side} pixels, {n_image} image tokens of {patch} x {patch} pixels.
- Prompt: `USER: <image>\\nIs there a boat in the image? ASSISTANT:` (a chat template
  is included).
- World it was trained on: co-occurrence prior {prior}, difficulty {difficulty}, seed
  {seed}.

## Made by

    {command}

{minutes} minutes on {device} ({processor}, {threads} threads), torch {torch},
transformers {transformers}. Minutes by stage: {stages}.

## Measured

On {n_scenes} scenes of each split, none of them used in training. Questions are
balanced; the absent objects are drawn at random, by frequency (popular) or by
co-occurrence with what is there (adversarial), as in POPE; captions are greedy, and
scored by exact ground truth.

| | validation | test |
|---|---|---|
{rows}

With `folder = eah_interp.toy.toy_path("{name}")`, load it as `eah_interp.load(folder)`
or, in plain transformers, `LlavaForConditionalGeneration.from_pretrained(folder)`.
The file holds float16 numbers, half the bytes; the config loads them as float32.
"""

_ROWS = (
    ("yes/no accuracy, random", "random", "accuracy"),
    ("yes/no accuracy, popular", "popular", "accuracy"),
    ("yes/no accuracy, adversarial", "adversarial", "accuracy"),
    ("yes/no accuracy, all questions", "all", "accuracy"),
    ("F1, all questions", "all", "f1"),
    ("false positives, random", "random", "false_positives"),
    ("false positives, popular", "popular", "false_positives"),
    ("false positives, adversarial", "adversarial", "false_positives"),
    ("caption recall", "captions", "recall"),
    ("CHAIR_S", "captions", "chair_s"),
    ("CHAIR_I", "captions", "chair_i"),
    ("objects named in a caption", "captions", "mentions"),
)


def write_card(record: dict[str, Any]) -> str:
    """Write the model card of a training log.

    Args:
        record: What `training_log.json` holds.

    Returns:
        The card, in Markdown.
    """
    recipe, results = record["recipe"], record["evaluation"]
    world, sizes = recipe["world"], recipe["architecture"]
    rows = []
    for label, kind, metric in _ROWS:
        unit = "" if metric == "mentions" else " %"
        values = [results[split][kind][metric] for split in ("validation", "test")]
        shown = " | ".join(f"{value:.1f}{unit}" for value in values)
        rows.append(f"| {label} | {shown} |")
    stages = record["seconds_by_stage"].items()
    return _CARD.format(
        name=record["name"],
        parameters=record["parameters"],
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        d_model=sizes["d_model"],
        side=world["image_size"],
        patch=world["patch_size"],
        n_image=(world["image_size"] // world["patch_size"]) ** 2,
        prior=world["prior"],
        difficulty=world["difficulty"],
        seed=recipe["seed"],
        command=record["command"],
        minutes=record["minutes"],
        device=record["hardware"]["device"],
        processor=record["hardware"]["processor"],
        threads=record["hardware"]["threads"],
        torch=record["versions"]["torch"],
        transformers=record["versions"]["transformers"],
        stages=", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in stages),
        n_scenes=round(results["test"]["captions"]["n"]),
        rows="\n".join(rows),
    )


def write_folder(
    model: "LlavaForConditionalGeneration",
    *,
    recipe: Recipe,
    run: TrainingRun,
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
    from eah_interp.benchmarks.toy import run_toy_benchmark
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
