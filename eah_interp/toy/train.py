"""Train the toy LVLM: `python -m eah_interp.toy.train --out DIR`.

Runs the stages of `stages.py` one after the other, keeps a resumable checkpoint in
`DIR/checkpoint`, and writes the finished model to `DIR`: weights, tokenizer, processor
and `training_log.json`. Started again on the same folder, it goes on where it stopped.
"""

import dataclasses
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from eah_interp.errors import SettingsError
from eah_interp.toy.arguments import parse_arguments
from eah_interp.toy.checkpoints import (
    Progress,
    load_checkpoint,
    load_progress,
    save_checkpoint,
)
from eah_interp.toy.folder import write_folder
from eah_interp.toy.model import build_model
from eah_interp.toy.recipe import STAGES, Recipe, Run, StageName
from eah_interp.toy.stages import Trainee, run_step


def train(recipe: Recipe, *, run: Run) -> Path:
    """Train the toy and write it to `run.out`.

    Args:
        recipe: What to train.
        run: How to.

    Returns:
        The folder; it holds `training_log.json` once the last stage is done, and only
        a checkpoint if the run stopped early at `run.stop_after`.

    Raises:
        SettingsError: The folder holds a checkpoint of another recipe.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.architecture, world=recipe.world)
    trainee = Trainee(model, recipe=recipe).to(run.device).train()
    settings = dataclasses.asdict(recipe)
    folder = run.out / "checkpoint"
    progress = load_progress(folder)
    log: list[dict[str, Any]] = []
    first, done = 0, 0
    if progress is not None:
        if progress.settings != settings:
            raise SettingsError(
                f"{folder} holds a checkpoint of another recipe; expected "
                f"{settings}, got {progress.settings}; choose another --out"
            )
        log, first, done = progress.log, STAGES.index(progress.stage), progress.step
    budget = sys.maxsize if run.stop_after is None else run.stop_after
    for name in STAGES[first:]:
        resumed = progress is not None and progress.stage == name
        budget = _run_stage(
            trainee,
            name=name,
            recipe=recipe,
            run=run,
            log=log,
            start=done if resumed else 0,
            budget=budget,
        )
        if budget <= 0 and run.stop_after is not None:
            return run.out
    write_folder(model.eval(), recipe=recipe, run=run, log=log)
    return run.out


def _run_stage(
    trainee: Trainee,
    *,
    name: StageName,
    recipe: Recipe,
    run: Run,
    log: list[dict[str, Any]],
    start: int,
    budget: int,
) -> int:
    """Train one stage from step `start`; return what is left of the step budget."""
    stage = recipe.stage(name)
    folder = run.out / "checkpoint"
    modules: dict[str, nn.Module] = {"trainee": trainee}
    optimizer = torch.optim.AdamW(
        trainee.groups(name, recipe=recipe), betas=(0.9, 0.98), weight_decay=0.01
    )
    if load_progress(folder) is not None:
        load_checkpoint(folder, modules=modules, optimizer=optimizer if start else None)
    metrics: dict[str, list[float]] = defaultdict(list)
    clock = time.perf_counter()
    bar = tqdm(range(start, stage.steps), desc=name, initial=start, total=stage.steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * pace_of(step, steps=stage.steps)
            group["lr"] *= stage.learning_rate
        result = run_step(trainee, name=name, recipe=recipe, step=step)
        optimizer.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        metrics["loss"].append(float(result.loss.detach()))
        for key, value in result.metrics.items():
            metrics[key].append(value)
        budget -= 1
        last = step + 1 == stage.steps or budget <= 0
        if (step + 1) % run.log_every == 0 or last:
            line = {key: round(sum(v) / len(v), 4) for key, v in metrics.items()}
            seconds = round(time.perf_counter() - clock, 1)
            log.append({"stage": name, "step": step + 1, "seconds": seconds, **line})
            clock = time.perf_counter()
            metrics.clear()
            bar.set_postfix(line)
        if (step + 1) % run.save_every == 0 or last:
            save_checkpoint(
                folder,
                modules=modules,
                optimizer=optimizer,
                progress=Progress(
                    stage=name,
                    step=step + 1,
                    settings=dataclasses.asdict(recipe),
                    log=log,
                ),
            )
        if budget <= 0:
            break
    return budget


def pace_of(step: int, *, steps: int) -> float:
    """Return the learning rate's share of its peak: warm-up, then cosine to a tenth.

    Example:
        >>> pace_of(100, steps=100)
        0.1
    """
    warm_up = min(1.0, (step + 1) / max(1, min(50, steps // 10)))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return warm_up * (0.1 + 0.9 * cosine)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    recipe, run = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    train(recipe, run=run)


if __name__ == "__main__":
    main()
