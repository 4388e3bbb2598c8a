"""Put the toy benchmark to a toy under every condition; stopped runs go on."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from conditions import PLAIN, list_conditions
from tqdm import tqdm

import eah_interp as eah
from eah_interp.benchmarks.toy import ToyBenchmark, ask_about_scenes, describe_scenes
from eah_interp.toy import draw_scenes, prompt_for, toy_path

SINK_SETTINGS = (("visible", 1.0), ("visible", 2.0), ("paper", 0.002))
"""Definition and beta of each map of sinks."""


def measure_toy(
    name: str,
    *,
    n_scenes: int,
    folder: Path,
    plain_only: bool = False,
    batch_size: int = 64,
) -> None:
    """Measure one toy under all conditions; what a former run finished is kept.

    Args:
        name: Which toy.
        n_scenes: The first so many scenes of the test split.
        folder: Where tables are written: a folder for each toy and number of scenes.
        plain_only: Whether to leave it at the toy as it is.
        batch_size: Prompts in one forward pass.
    """
    here = folder / f"{name}-{n_scenes}"
    here.mkdir(parents=True, exist_ok=True)
    refuse_other_weights(here, name)
    model = eah.load(str(toy_path(name)))
    scenes = draw_scenes(range(n_scenes))
    options = {"batch_size": batch_size, "progress": False}
    conditions = list_conditions(model.n_layers)
    if plain_only:
        conditions = {PLAIN: None}
    bar = tqdm(conditions.items(), desc=name)
    for condition, settings in bar:
        bar.set_postfix_str(condition)
        answers = here / f"{condition}.questions.parquet"
        if not answers.exists():
            kinds = ["adversarial"]
            found = ask_about_scenes(
                model, scenes, eah=settings, samplings=kinds, **options
            )
            write(found, answers)
        captions = here / f"{condition}.captions.parquet"
        if not captions.exists():
            write(describe_scenes(model, scenes, eah=settings, **options), captions)
    if not (here / "sinks.parquet").exists():
        write(map_sinks(model, scenes, batch_size=batch_size), here / "sinks.parquet")


def map_sinks(model: eah.LVLM, scenes: list, *, batch_size: int) -> pd.DataFrame:
    """Score every head's sinks on the captioning prompt, under each definition."""
    prompt = prompt_for("Describe the image.")
    tables = []
    for definition, beta in SINK_SETTINGS:
        for start in range(0, len(scenes), batch_size):
            part = scenes[start : start + batch_size]
            images = [scene.pil() for scene in part]
            found = eah.score_sinks(
                model, images, [prompt] * len(part), definition=definition, beta=beta
            )
            table = found.frame()[["item", "layer", "head", "density"]]
            seeds = pd.Series([scene.seed for scene in part])
            table = table.assign(
                scene=table["item"].map(seeds), definition=definition, beta=beta
            )
            tables.append(table.drop(columns="item"))
    return pd.concat(tables, ignore_index=True)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet; there is never half a file."""
    fresh = path.with_suffix(".new")
    table.to_parquet(fresh)
    fresh.replace(path)


def refuse_other_weights(here: Path, name: str) -> None:
    """See that a folder's tables are of the weights as they are now."""
    log = json.loads((toy_path(name) / "training_log.json").read_text())
    state = {"toy": name, "sha256": log["sha256"], "torch": torch.__version__}
    path = here / "weights.json"
    if path.exists() and json.loads(path.read_text()) != state:
        msg = (
            f"{here} was measured on other weights; delete it, or choose another --runs"
        )
        raise SystemExit(msg)
    path.write_text(json.dumps(state))


@dataclass(frozen=True)
class Run:
    """What was measured on one toy.

    Attributes:
        results: Answers to adversarial questions, and captions, by condition.
        sinks: Density of every head on every scene, by definition and beta.
    """

    results: dict[str, ToyBenchmark]
    sinks: pd.DataFrame


def read(folder: Path, name: str, *, n_scenes: int) -> Run:
    """Read what was measured on a toy."""
    here = folder / f"{name}-{n_scenes}"
    results = {}
    for path in sorted(here.glob("*.questions.parquet")):
        condition = path.name.removesuffix(".questions.parquet")
        questions = pd.read_parquet(path)
        captions = pd.read_parquet(here / f"{condition}.captions.parquet")
        adversarial = questions[questions.kind == "adversarial"]
        results[condition] = ToyBenchmark(adversarial, captions)
    return Run(results, pd.read_parquet(here / "sinks.parquet"))
