"""What is saved here, stated anew: the settings, the study, and how to list numbers.

`make.py` wrote the files with these, once; `tests/test_saved_before.py` reads them with
these. Only public names are used: files inside the package may move.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies import Condition, Item, Study, toy_items
from eah_interp.studies.conditions import BASELINE

HERE = Path(__file__).parent
SETTINGS_FILE, EXPECTED_FILE = HERE / "settings.json", HERE / "expected.json"
RESULTS, STUDY, UNFINISHED = HERE / "results", HERE / "study", HERE / "unfinished"
STUDY_FILE, EVERY_KEY_FILE = HERE / "study.yaml", HERE / "every_key.yaml"
QUESTIONS, TRAINING = HERE / "pope.jsonl", HERE / "training"

WHOLE = ("heads-plain", "heads-patched")
"""Results of which `frame.parquet` is kept."""

HEADS = ("L3H7", (1, 0))

SETTINGS: dict[str, Any] = {
    "EAH": eah.EAH(),
    "EAH as published": eah.EAH.paper(),
    "EAH as published, changed": eah.EAH.paper(layers=(0, 2), beta=0.01, gamma=0.2),
    "EAH as released": eah.EAH.official(),
    "EAH as released, changed": eah.EAH.official(layers=(1,), items="all"),
    "EAH of every donor, densest": eah.EAH(donor="densest", beta=2.0),
    "EAH of every donor, sparsest": eah.EAH(donor="sparsest", beta=0.0),
    "EAH of every donor, random": eah.EAH(donor="random", seed=7),
    "EAH of every donor, mean": eah.EAH(donor="mean", layers=(0, 1, 2)),
    "EAH of every donor, uniform": eah.EAH(donor="uniform", steps="all"),
    "EAH of every donor, shuffled": eah.EAH(donor="shuffled", seed=(4, 5)),
    "EAH of every donor, a head": eah.EAH(donor=3, layers=(5, 2)),
    "EAH with everything set": eah.EAH(
        layers=(3, 1),
        definition="official",
        beta=0.125,
        gamma=1.0,
        donor="random",
        recipients=(6, 0, 2),
        steps="all",
        seed=(11, 0, 3),
        items="first",
        head_0="never",
    ),
    "PAI": eah.PAI(),
    "PAI as published": eah.PAI.paper(),
    "PAI as released": eah.PAI.official(),
    "PAI of some layers": eah.PAI(alpha=1.0, layers=(4, 2), steps="prefill"),
    "PAI of a slice": eah.PAI(alpha=0.0, layers="1:-1"),
    "VAR": eah.VAR(sink_dims=(5, 1)),
    "VAR as published": eah.VAR.paper(),
    "VAR as published, Qwen": eah.VAR.paper("qwen2-vl-7b", task="general"),
    "VAR as released": eah.VAR.official("llama-2-13b"),
    "VAR with everything set": eah.VAR(
        sink_dims=(9,),
        tau=3.0,
        rho=0.25,
        share=1.0,
        min_image=0.0,
        layers=(0, 3),
        lone_sinks="kept",
        steps="prefill",
    ),
    "ablation": eah.Ablation(heads=HEADS),
    "ablation, zero": eah.Ablation(heads=HEADS, how="zero", steps="prefill"),
    "ablation, mean": eah.Ablation(heads=HEADS, how="mean"),
    "ablation, uniform": eah.Ablation(heads=HEADS, how="uniform"),
    "ablation, previous": eah.Ablation(heads=HEADS, how="previous"),
    "ablation, knockout": eah.Ablation(heads=HEADS, how="knockout"),
}
"""Settings of every kind, by what they are."""

IN_PART: dict[str, tuple[dict[str, Any], Any]] = {
    "EAH": ({"layers": [2], "seed": [1, 2]}, eah.EAH(layers=(2,), seed=(1, 2))),
    "PAI": ({"layers": "3:"}, eah.PAI(layers="3:")),
    "VAR": ({"sink_dims": [4, 2]}, eah.VAR(sink_dims=(2, 4))),
    "Ablation": ({"heads": [[1, 0], "L3H7"]}, eah.Ablation(heads=HEADS)),
}
"""Mappings written by hand, which leave defaults out, and what they mean, by class."""

CONDITIONS: tuple[Condition, ...] = (
    BASELINE,
    Condition("EAH", SETTINGS["EAH"]),
    Condition("EAH with everything", SETTINGS["EAH with everything set"]),
    Condition("PAI", SETTINGS["PAI of some layers"]),
    Condition("VAR / all of it", SETTINGS["VAR with everything set"]),
    Condition("ablation: mean", SETTINGS["ablation, mean"]),
)
"""Conditions of every kind."""

FAILING = Item("gone", "caption", "gone.png", "Describe the image.", cluster="gone")
"""An item without a picture: its rows have an error."""

DRAWS = Draws(resamples=100, seed=0)

TRAINING_LINE = (
    "--seed 5 --n-layers 1 --n-heads 1 --n-kv-heads 1 --d-model 2 --d-mlp 2 "
    "--vision-layers 1 --vision-heads 1 --vision-width 2 --batch-size 2 "
    "--vision-steps 3 --language-steps 1 --projection-steps 1 --alignment-steps 1"
)
"""Of `python -m eah_interp.toy.training.train`: a toy of the toy."""


def make_study(model: Any) -> Study:
    """Make the study of `study.yaml` without it, and with an item that fails."""
    return Study(
        model,
        (*toy_items(3, samplings=("random",)), FAILING),
        (
            BASELINE,
            Condition("EAH", eah.EAH(layers=(4,), gamma=0.2, seed=3)),
            Condition("random donor", eah.EAH(layers=(4,), donor="random", seed=3)),
            Condition(
                "L3H5 / L4H0: knockout",
                eah.Ablation(heads=((3, 5), (4, 0)), how="knockout"),
            ),
        ),
        decoding={"yes_no": {"max_new_tokens": 2}, "caption": {"max_new_tokens": 12}},
        batch_size=6,
        sinks=True,
        seed=3,
    )


def expect(result: Any) -> dict[str, Any]:
    """Say what a result is: its class, its table, and a hash of every attribute."""
    columns = list_frame(result.frame())
    return {
        "class": type(result).__name__,
        "n_rows": len(result.frame()),
        "frame": {name: digest(values) for name, values in columns.items()},
        "attributes": {name: digest(one) for name, one in describe(result).items()},
    }


def describe(value: Any) -> Any:
    """List all that a result is made of, by attribute, tensors by their bytes."""
    if isinstance(value, Tensor):
        content = value.contiguous().numpy().tobytes()
        return {
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    if isinstance(value, eah.EAH):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: describe(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): describe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [describe(one) for one in value]
    return value


def list_frame(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """List a table by column, as JSON gives it back; None where nothing stands."""
    return {str(name): [_plain(v) for v in frame[name].tolist()] for name in frame}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(value)
    return None if pd.isna(value) else value


def digest(listed: Any) -> str:
    """Hash what JSON can hold."""
    text = json.dumps(listed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
