"""What wrote the files in this folder: `python -m tests.saved.make`, run once.

It was run on commit 55005b7, the last one before the package was rearranged, and
`tests/test_saved_before.py` shows that what it wrote can still be read. It must not be
run again on later code: files that later code wrote say nothing about files that users
saved before, however well that code reads them. So it refuses to, and refuses to write
over anything. What later code saves in a new form gets a folder of its own, written on
the commit that it is of.
"""

import inspect
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import eah_interp as eah
from eah_interp import attribution
from eah_interp.benchmarks import read_pope_questions
from eah_interp.benchmarks.pope_files import write_pope_questions
from eah_interp.studies import (
    StudyFile,
    StudyRun,
    answer_claims,
    pope_items,
    summarise,
)
from eah_interp.studies.progress import measure_progress
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from eah_interp.toy.training.train import main as train
from tests.saved import plan

COMMIT = "55005b73a9"
QUESTION, LONGER = "a boat ?", "a small red boat ?"


def make() -> None:
    """Write everything, or refuse."""
    if plan.SETTINGS_FILE.exists():
        raise SystemExit(f"{plan.HERE} was written on {COMMIT}: leave it as it is")
    changed = subprocess.run(
        ["git", "diff", "--quiet", COMMIT, "--", "eah_interp"], check=False
    )
    if changed.returncode:
        raise SystemExit(f"the package is not that of {COMMIT}: see the docstring")
    make_settings()
    make_results()
    expected = {"commit": COMMIT, "results": sorted(p.name for p in list_results())}
    expected |= make_studies() | make_questions() | make_training()
    write(plan.EXPECTED_FILE, expected)


def write(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping as JSON, a key a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(one)}" for key, one in values.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_settings() -> None:
    """Write every kind of settings, and every kind of condition."""
    settings = {
        name: {"class": type(one).__name__, "values": one.to_dict()}
        for name, one in plan.SETTINGS.items()
    }
    conditions = {one.name: one.to_dict() for one in plan.CONDITIONS}
    write(plan.SETTINGS_FILE, settings | {"conditions": conditions})


def list_results() -> list[Path]:
    """List the folders of saved results."""
    return list(plan.RESULTS.iterdir())


def make_results() -> None:
    """Save a result of every class.

    `load` does not read `frame.parquet`, which is as large as all the rest: but for two
    folders that are kept whole, it is left out.
    """
    model = eah.wrap(
        tiny_lvlm("llava", n_layers=2, n_heads=2, d_head=4), tiny_processor("llava")
    )
    saved = set()
    for name, result in compute(model):
        folder = result.save(plan.RESULTS / name)
        write(folder / "expected.json", plan.expect(result))
        if name not in plan.WHOLE:
            (folder / "frame.parquet").unlink()
        saved.add(type(result))
    kinds = {kind for _, kind in inspect.getmembers(attribution, inspect.isclass)}
    kinds = {kind for kind in kinds if hasattr(kind, "save") and hasattr(kind, "load")}
    if saved != kinds:
        raise SystemExit(f"no result of {kinds - saved}")


def compute(model: Any) -> Iterator[tuple[str, Any]]:
    """Compute results of every class: plain, patched, and in every form they have."""
    one = (model, random_image(), QUESTION)
    two = (model, [random_image(), random_image(1)], [QUESTION, LONGER])
    objects = {"objects": ["boat", "dog"]}
    first = eah.EAH(layers=(0,))
    yield (
        "heads-plain",
        attribution.attribute_heads(*one, objects=["boat"], sources=True),
    )
    yield (
        "heads-patched",
        attribution.attribute_heads(
            *one, **objects, patch=eah.EAH(layers=(0, 1), seed=(3,))
        ),
    )
    yield "lens-plain", attribution.logit_lens(*one, **objects, metric="logit_diff")
    yield (
        "lens-patched",
        attribution.logit_lens(*one, metric="yes_no", patch=eah.EAH(donor="mean")),
    )
    yield (
        "picture-plain",
        attribution.attribute_patches(*one, objects=["dog"]),
    )
    yield (
        "picture-patched",
        attribution.attribute_patches(
            *one,
            objects=["dog"],
            method="attention_gradient",
            metric="log_prob",
            patch=eah.EAH.paper(layers=(0,), gamma=0.01),
        ),
    )
    yield (
        "patching-into-plain",
        attribution.patch_heads(*one, **objects, source=first, what="pattern"),
    )
    yield (
        "patching-ablation-of-patched",
        attribution.ablate_heads(
            *one,
            **objects,
            how="mean",
            target=eah.EAH(layers=(0,), donor=1, recipients=(0,)),
            heads=["L1H0", "L0.mlp"],
            together=True,
        ),
    )
    yield (
        "approximation-of-plain",
        attribution.approximate_heads(
            *one, **objects, source="plain", source_images=random_image(1), check=3
        ),
    )
    yield (
        "approximation-of-patched",
        attribution.approximate_heads(
            *one,
            **objects,
            source="plain",
            target=first,
            method="integrated_gradients",
            n_steps=2,
            check=0,
        ),
    )
    yield (
        "recipients-alone",
        attribution.attribute_recipients(*one, **objects, eah=first),
    )
    yield (
        "mediation",
        attribution.trace_mediators(*two, objects=["boat"], eah=first),
    )
    yield "patterns-plain", attribution.read_patterns(*one, heads=["L1H0"])
    yield (
        "patterns-patched",
        attribution.read_patterns(
            *two,
            heads=["L0H1", (1, 0)],
            query=[-1],
            patch=eah.EAH(layers=(0,), definition="paper", donor="shuffled", seed=2),
        ),
    )
    yield (
        "broadcast-scores",
        attribution.score_broadcast(
            *one, eah=eah.EAH.official(layers=(1,)), layers=[0, 1]
        ),
    )


def make_studies() -> dict[str, Any]:
    """Run a study to its end, and another until it was stopped."""
    model = eah.load()
    planned = StudyFile.load(plan.STUDY_FILE)
    run = plan.make_study(model).run(plan.STUDY, progress=False)
    planned.study(model).run(plan.UNFINISHED, shard="1/2", progress=False)
    written = (plan.UNFINISHED / "rows").rglob("*.parquet")
    for path in sorted(written, key=lambda one: one.stat().st_mtime_ns)[2:]:
        path.unlink()  # as if Ctrl-C had been pressed under the batch's 2nd condition
    summary = summarise(run, draws=plan.DRAWS)
    claims = answer_claims(run, draws=plan.DRAWS)
    sinks = plan.list_frame(run.sinks())
    return {
        "conditions": list(run.conditions),
        "frame": plan.list_frame(run.frame()),
        "sinks": {name: plan.digest(values) for name, values in sinks.items()},
        "n_sinks": len(run.sinks()),
        "progress": progress_of(run),
        "unfinished": progress_of(StudyRun.load(plan.UNFINISHED)),
        "manifest_hash": summary.manifest_hash,
        "summary": [
            {key: value for key, value in row.items() if value is not None}
            for row in summary.to_dict()["rows"]
        ],
        "failures": [dict(row) for row in summary.failures],
        "notes": list(summary.notes),
        "verdicts": [claim.verdict for claim in claims],
        "study_file": planned.to_dict(),
        "every_key": StudyFile.load(plan.EVERY_KEY_FILE).to_dict(),
    }


def progress_of(run: StudyRun) -> dict[str, Any]:
    """Count what a study has."""
    found = measure_progress(run.folder).to_dict()
    return {key: value for key, value in found.items() if key != "folder"}


def make_questions() -> dict[str, Any]:
    """Write questions in POPE's format."""
    asked = [
        ("COCO_val2014_1.jpg", "Is there a boat in the image?", "yes"),
        ("COCO_val2014_1.jpg", "Is there a dog in the image?", "no"),
        ("COCO_val2014_2.jpg", "Is there a café in the image?", "no"),
    ]
    table = pd.DataFrame(asked, columns=["image", "text", "label"])
    table.insert(0, "question_id", range(1, len(table) + 1))
    write_pope_questions(table, plan.QUESTIONS)
    found = read_pope_questions(plan.QUESTIONS).drop(columns="place")
    items = pope_items(plan.QUESTIONS, "pictures", kind="random")
    return {
        "questions": plan.list_frame(found),
        "items": [item.to_dict() for item in items],
    }


def make_training() -> dict[str, Any]:
    """Train a toy for a step, keep its checkpoint, and note how it went on."""
    with tempfile.TemporaryDirectory() as name:
        out = ["--out", name]
        train([*plan.TRAINING_LINE.split(), *out, "--stop-after", "1"])
        shutil.copytree(name, plan.TRAINING)
        train([*plan.TRAINING_LINE.split(), *out, "--stop-after", "1"])
        record = json.loads((Path(name) / "checkpoint/progress.json").read_text())
    return {"training": record["log"]}


if __name__ == "__main__":
    make()
