"""The command line of the training script."""

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from eah_interp.toy.recipe import STAGES, Recipe, Run
from eah_interp.toy.world import World


def parse_arguments(arguments: Sequence[str]) -> tuple[Recipe, Run]:
    """Turn command-line arguments into a recipe and a run."""
    parser = argparse.ArgumentParser(
        prog="eah_interp.toy.train", description="Train the toy LVLM."
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
    run = Run(
        out=given.out,
        device=given.device,
        threads=given.threads,
        save_every=given.save_every,
        test_scenes=given.test_scenes,
        stop_after=given.stop_after,
        command="python -m eah_interp.toy.train " + shlex.join(arguments),
    )
    return recipe, run
