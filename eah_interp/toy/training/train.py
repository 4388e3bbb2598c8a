"""Train the toy LVLM: `python -m eah_interp.toy.training.train --out DIR`.

Runs the stages of `stages.py` one after the other, keeps a resumable checkpoint in
`DIR/checkpoint`, and writes the finished model to `DIR`: weights, tokenizer, processor
and `training_log.json`. Started again on the same folder, it goes on where it stopped.
"""

import argparse
import dataclasses
import json
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from eah_interp.errors import SettingsError
from eah_interp.toy.model import build_model
from eah_interp.toy.training.folder import write_folder
from eah_interp.toy.training.recipe import STAGES, Recipe, StageName, TrainingRun
from eah_interp.toy.training.stages import Trainee, run_step
from eah_interp.toy.world import World

# ---- The command line of the training script.


def parse_arguments(arguments: Sequence[str]) -> tuple[Recipe, TrainingRun]:
    """Turn command-line arguments into a recipe and a run."""
    parser = argparse.ArgumentParser(
        prog="eah_interp.toy.training.train", description="Train the toy LVLM."
    )
    base = Recipe()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=base.seed)
    parser.add_argument("--prior", type=float, default=base.world.prior)
    parser.add_argument("--text-prior", type=float, default=base.text_prior)
    parser.add_argument("--caption-prior", type=float, default=base.caption_prior)
    parser.add_argument("--difficulty", type=float, default=base.world.difficulty)
    parser.add_argument("--batch-size", type=int, help="of every stage")
    for name in STAGES:
        steps = base.stage(name).steps
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    for field in dataclasses.fields(base.architecture):
        value = getattr(base.architecture, field.name)
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=int, default=value)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--stop-after", type=int)
    given = parser.parse_args(arguments)
    stages = {}
    for name in STAGES:
        steps = getattr(given, f"{name}_steps")
        size = given.batch_size or base.stage(name).batch_size
        stages[name] = dataclasses.replace(
            base.stage(name), steps=steps, batch_size=size
        )
    sizes = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(base.architecture)
    }
    recipe = dataclasses.replace(
        base,
        seed=given.seed,
        world=World(prior=given.prior, difficulty=given.difficulty),
        architecture=dataclasses.replace(base.architecture, **sizes),
        text_prior=given.text_prior,
        caption_prior=given.caption_prior,
        vision=stages["vision"],
        language=stages["language"],
        projection=stages["projection"],
        alignment=stages["alignment"],
    )
    run = TrainingRun(
        out=given.out,
        device=given.device,
        threads=given.threads,
        save_every=given.save_every,
        test_scenes=given.test_scenes,
        stop_after=given.stop_after,
        command="python -m eah_interp.toy.training.train " + shlex.join(arguments),
    )
    return recipe, run


# ---- Resumable training state in safetensors and JSON; nothing is pickled.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a run has come.

    Attributes:
        stage: Name of the stage to go on with.
        step: Steps of that stage already done.
        settings: Settings of the run; a resumed run must have the same.
        log: Metrics so far.
    """

    stage: str
    step: int
    settings: dict[str, Any]
    log: list[dict[str, Any]]


def save_checkpoint(
    folder: Path,
    *,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
) -> None:
    """Write modules, optimizer and progress; a crash leaves the earlier state.

    Args:
        folder: Where checkpoints live; made if missing.
        modules: Modules by name.
        optimizer: Optimizer of the current stage.
        progress: How far the run has come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"module.{name}.{key}": value.detach().clone().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).clone()
    name = f"{progress.stage}-{progress.step:06d}.safetensors"
    save_file(tensors, folder / name)
    record = {"tensors": name, **dataclasses.asdict(progress)}
    # renamed into place last, so that it never names tensors that are not whole
    fresh = folder / "progress.json.new"
    fresh.write_text(json.dumps(record, indent=1))
    fresh.replace(folder / "progress.json")
    for old in folder.glob("*.safetensors"):
        if old.name != name:
            old.unlink()


def load_progress(folder: Path) -> TrainingProgress | None:
    """Read how far an earlier run has come, or None if there was none."""
    path = folder / "progress.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    del record["tensors"]
    return TrainingProgress(**record)


def load_checkpoint(
    folder: Path,
    *,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Restore modules, and the optimizer if given, in place."""
    record = json.loads((folder / "progress.json").read_text())
    tensors = load_file(folder / record["tensors"])
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, f"module.{name}."))
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(tensors, "optimizer.").items():
        index, field = key.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with a prefix, without it."""
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


def train(recipe: Recipe, *, run: TrainingRun) -> Path:
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
    run: TrainingRun,
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
        # a stage that begins has an optimizer of its own, with nothing to restore
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
                progress=TrainingProgress(
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
