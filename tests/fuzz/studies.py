"""Study files, and folders of studies: missing, copied, cut and edited files."""

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import eah_interp as eah
from eah_interp import studies
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.progress import measure_progress
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import model
from tests.fuzz.mutated import change_bytes, change_file, change_json
from tests.fuzz.values import Rng, change, input_of, odd, pick
from tests.saved import plan

MAY_BE_NAN = frozenset(
    {
        "chair_s",
        "chair_i",
        "answer",
        "n_tokens",
        "says_yes",
        "repetition",
        "value",
        "f1",
    }
)
SHORT = Draws(resamples=100, seed=0)


@functools.cache
def contents() -> tuple[Any, ...]:
    paths = (plan.STUDY_FILE, plan.EVERY_KEY_FILE)
    return tuple(yaml.safe_load(path.read_text()) for path in paths)


def make_study_file(rng: Rng, folder: Path) -> Input:
    path = folder / "study.yaml"
    if rng.random() < 0.4:
        source = pick(rng, (plan.STUDY_FILE, plan.EVERY_KEY_FILE))
        path.write_bytes(change_bytes(rng, source.read_bytes()))
    else:
        content = pick(rng, contents())
        for _ in range(int(rng.integers(1, 4))):
            content = change_json(rng, content)
        path.write_text(yaml.safe_dump(content, allow_unicode=True))
    given: Any = odd(rng) if rng.random() < 0.03 else path
    text = path.read_bytes().decode(errors="backslashreplace")
    found = input_of(studies.StudyFile.load, given, then=lambda made: made.to_dict())
    return Input(found.call, f"{found.shown} [{text[:60]!r}...]", MAY_BE_NAN)


def change_table(rng: Rng, path: Path) -> str:
    """Change a Parquet file as a table: columns, types, rows."""
    table = pd.read_parquet(path)
    column = pick(rng, list(table.columns))
    way = int(rng.integers(7))
    if way == 0:
        table = table.drop(columns=column)
    elif way == 1:
        table = table.iloc[:0]
    elif way == 2:
        table = pd.concat([table, table.iloc[:1]])
    elif way == 3:
        table[column] = pick(rng, [None, 1, "a", np.nan, 1.5, True, -1, 10**9])
    elif way == 4:
        table = table.iloc[1:]
    elif way == 5:
        table = table.rename(columns={column: "other"})
    else:
        table = table.iloc[::-1].astype({column: "string"})
    table.to_parquet(path)
    return f"{path.name}: way {way} of {column}"


def change_folder(rng: Rng, folder: Path) -> str:
    """Lose, copy, cut, edit or misplace one file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    one = pick(rng, files)
    way = int(rng.integers(9))
    if way == 0:
        one.unlink()
        return f"{one.name} is gone"
    if way == 1:
        shutil.copy(one, one.with_name(f"{one.stem} (copy){one.suffix}"))
        return f"{one.name} is there twice"
    if way == 2:
        other = pick(rng, [path for path in files if path.suffix == one.suffix])
        one.write_bytes(other.read_bytes())
        return f"{one.name} is {other.name}"
    if way == 3:
        one.unlink()
        one.mkdir()
        return f"{one.name} is a folder"
    if way == 4 and one.parent != folder:
        shutil.rmtree(one.parent)
        return f"{one.parent.name} is gone"
    if way == 5:
        (folder / pick(rng, ["rows", "sinks"]) / "odd.parquet").write_bytes(b"odd")
        return "an odd file"
    if one.suffix == ".parquet" and way < 8 and one.name != "odd.parquet":
        return change_table(rng, one)
    return change_file(rng, one)


def read_all(folder: Any) -> Any:
    """Read a study's folder in every way that there is."""
    run = studies.StudyRun.load(folder)
    found: list[Any] = [run.is_complete, run.conditions]
    found += [
        run.items(),
        run.frame(),
        run.rows(),
        run.sinks(),
        measure_progress(folder),
    ]
    return [found[:2], found[6].to_dict(), dict(run.frame().describe())]


def sum_up(folder: Any) -> Any:
    run = studies.StudyRun.load(folder)
    summary = studies.summarise(run, partial=True, draws=SHORT)
    return [
        summary.to_dict(),
        studies.answer_claims(run, draws=SHORT),
        summary.markdown(),
    ]


def make_folder(rng: Rng, folder: Path) -> Input:
    copy = folder / "study"
    shutil.copytree(pick(rng, [plan.STUDY, plan.UNFINISHED]), copy)
    said = [change_folder(rng, copy) for _ in range(int(rng.integers(0, 3)))]
    given: Any = odd(rng) if rng.random() < 0.03 else copy
    kind = rng.random()
    if kind < 0.5:
        function: Any = read_all
    elif kind < 0.8:
        function = sum_up
    elif kind < 0.9:
        function = studies.compare_runs
        return Input(
            lambda: studies.compare_runs(
                studies.StudyRun.load(plan.STUDY),
                studies.StudyRun.load(copy),
                draws=SHORT,
                partial=True,
                allow_different=True,
            ).to_dict(),
            f"compare_runs {said}",
            MAY_BE_NAN,
        )
    else:

        def function(given: Any) -> Any:
            out = studies.report(
                studies.StudyRun.load(given),
                folder / "a.html",
                partial=True,
                draws=SHORT,
            )
            return out.stat().st_size

    found = input_of(function, given)
    return Input(found.call, f"{found.shown} {said}", MAY_BE_NAN)


def make_summary(rng: Rng, folder: Path) -> Input:
    values = change(
        rng,
        {"reference": "baseline", "partial": True, "draws": SHORT, "annotations": None}
        | {"synonyms": None, "rule": "pope"},
    )
    run = studies.StudyRun.load(plan.STUDY)
    way = int(rng.integers(3))
    if way == 0:
        out = pick(rng, [folder / "a.html", folder, folder / "no" / "a.html", odd(rng)])
        return input_of(studies.report, run, out, then=str, **values)
    if way == 1:
        values = {"reference": odd(rng), "draws": pick(rng, [SHORT, odd(rng)])}
        return input_of(studies.answer_claims, run, **values)
    return input_of(studies.summarise, run, then=lambda s: s.to_dict(), **values)


def make_study(rng: Rng, folder: Path) -> Input:
    """A study of one question, run."""
    items = studies.toy_items(1, samplings=("random",), captions=False)[:1]
    conditions = (BASELINE, studies.Condition("EAH", eah.EAH(layers=(2,))))
    base = {"items": items, "conditions": conditions, "decoding": {}, "batch_size": 2}
    base |= {"sinks": False, "seed": 0, "source": None}
    values = change(rng, base)
    if rng.random() < 0.3:
        kind = pick(rng, ["yes_no", "caption", "other", 1])
        values["decoding"] = {kind: pick(rng, [odd(rng), {"max_new_tokens": odd(rng)}])}
    how = change(rng, {"shard": "1/1", "engine": "local", "progress": False}, most=1)
    how["progress"] = False
    if isinstance(how["engine"], str) and how["engine"] == "ray":
        how["engine"] = "local"
    out = pick(rng, [folder / "run", folder / "run", folder / "run", odd(rng)])
    if isinstance(out, str) or out is None:
        out = folder / "run"

    def use(study: Any) -> Any:
        return study.run(out, **how).is_complete

    return input_of(studies.Study, model(), then=use, **values)


def make_items(rng: Rng, folder: Path) -> Input:
    questions = folder / "pope.jsonl"
    shutil.copy(plan.QUESTIONS, questions)
    if rng.random() < 0.5:
        change_file(rng, questions)
    way = int(rng.integers(3))
    if way == 0:
        values = change(
            rng,
            {
                "questions": questions,
                "images": folder,
                "suffix": "",
                "kind": "",
                "limit": None,
            },
        )
        return input_of(studies.pope_items, **values)
    if way == 1:
        (folder / "a.png").write_bytes(b"")
        values = change(rng, {"images": folder, "prompt": "What is it?", "limit": None})
        return input_of(studies.caption_items, **values)
    base = {"n_scenes": 1, "split": "test", "questions": True, "captions": True}
    base["samplings"] = ("random",)
    values = change(rng, base)
    number = values["n_scenes"]
    if isinstance(number, int | float | np.number) and number > 1000:
        values["n_scenes"] = 2
    return input_of(studies.toy_items, **values)


TARGETS = {
    "studies.files": Target(make_study_file, 5_000),
    "studies.folders": Target(make_folder, 2_500),
    "studies.summaries": Target(make_summary, 500),
    "studies": Target(make_study, 1_000),
    "studies.items": Target(make_items, 1_500),
}
