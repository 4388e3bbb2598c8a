"""Resumable training state in safetensors and JSON; nothing is pickled."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
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
    progress: Progress,
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
    fresh = folder / "progress.json.new"
    fresh.write_text(json.dumps(record, indent=1))
    fresh.replace(folder / "progress.json")
    for old in folder.glob("*.safetensors"):
        if old.name != name:
            old.unlink()


def load_progress(folder: Path) -> Progress | None:
    """Read how far an earlier run has come, or None if there was none."""
    path = folder / "progress.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    del record["tensors"]
    return Progress(**record)


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
