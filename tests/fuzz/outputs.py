"""Files of outputs: compared, scored by four benchmarks, read in every way; claims."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from eah_interp import benchmarks
from eah_interp.benchmarks import amber, hallusionbench, mme, mmvp
from eah_interp.benchmarks.frontier import list_frontier
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies.ledger import read_claim
from tests.fuzz.harness import Input, Target
from tests.fuzz.mutated import change_file
from tests.fuzz.readers import (
    ANSWERS,
    LISTS,
    QUESTIONS,
    SAID,
    SYNONYMS,
    odd_table,
    write,
)
from tests.fuzz.values import Rng, change, input_of, odd, pick

MAY_BE_NAN = frozenset(
    {"low", "high", "f1", "precision", "recall", "accuracy", "chair", "cover", "cog"}
    | {"false_positives", "a_acc", "f_acc", "q_acc", "value"}
    | {
        f"{n}{end}"
        for n in ("CHAIR_I", "recall", "words", "F1")
        for end in ("", "_low")
    }
    | {f"{n}_high" for n in ("CHAIR_I", "recall", "words", "F1")}
)
"""Ends of intervals that the data cannot carry, and rates of nothing."""

FEW = Draws(resamples=20)

NOTES = [
    {"id": 1, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 2, "type": "relation", "truth": "yes"},
    {"id": 3, "type": "generative", "truth": ["dog"], "hallu": ["cup"]},
]
GIVEN = [{"id": i, "response": text} for i, text in ((1, "No"), (2, "Yes"), (3, "dog"))]
RELATIONS = {"dog": ["puppy"], "cup": []}
LINES = "a.jpg\tIs it?\tYes\tYes\na.jpg\tIs it not?\tNo\tno.\n"
HALLUSION = [
    {
        "category": "VS",
        "subcategory": "map",
        "visual_input": "1",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": "0",
        "question": "Is it?",
        "gt_answer": "1",
        "filename": f"{figure}.png",
        "model_prediction": "Yes",
    }
    for figure in (0, 1, 2)
]
OPTIONS = "Index,Question,Options,Correct Answer\n" + "".join(
    f"{n},Is it?,(a) Yes (b) No,(a)\n" for n in (1, 2)
)
CHOSEN = [{"question_id": n, "response": "(a)"} for n in (1, 2)]


def make_comparison(rng: Rng, folder: Path) -> Input:
    """Two files and what they are scored with, one of them changed."""
    names = ("base.jsonl", "patched.jsonl")
    if rng.random() < 0.5:
        paths = [write(folder / name, SAID, rng) for name in names]
        extra: dict[str, Any] = {
            "annotations": write(folder / "objects.json", LISTS, rng),
            "synonyms": write(folder / "synonyms.txt", SYNONYMS, rng),
            "lemmatize": str.split,
        }
    else:
        paths = [write(folder / name, ANSWERS, rng) for name in names]
        extra = {"questions": write(folder / "questions.jsonl", QUESTIONS, rng)}
    changed = pick(rng, [*paths, *(p for p in extra.values() if isinstance(p, Path))])
    said = change_file(rng, changed) if rng.random() < 0.8 else "as it was"
    options = {**extra, "common": bool(rng.random() < 0.5), "draws": FEW}
    if rng.random() < 0.2:
        options = change(rng, options, most=1)
        if callable(options.get("lemmatize")):
            options["lemmatize"] = str.split
    patched: Any = pick(rng, [paths[1], [paths[1], paths[0]], odd(rng)])
    found = input_of(
        benchmarks.compare_outputs,
        paths[0],
        patched,
        then=lambda result: (result.to_dict(), str(result)),
        **options,
    )
    return Input(found.call, f"{found.shown} [{said}]", MAY_BE_NAN)


def make_benchmark(rng: Rng, folder: Path) -> Input:
    """A benchmark's files, one of them changed, read and scored."""
    name = pick(rng, ["amber", "mme", "hallusionbench", "mmvp"])
    if name == "amber":
        paths = [
            write(folder / "annotations.json", NOTES, rng),
            write(folder / "answers.json", GIVEN, rng),
            write(folder / "relation.json", json.dumps(RELATIONS), rng),
            write(folder / "safe_words.txt", "light\n", rng),
        ]
    elif name == "mme":
        paths = [write(folder / "existence.txt", LINES, rng)]
    elif name == "hallusionbench":
        paths = [write(folder / "HallusionBench.json", HALLUSION, rng)]
    else:
        paths = [
            write(folder / "Questions.csv", OPTIONS, rng),
            write(folder / "answers.jsonl", CHOSEN, rng),
        ]
    said = change_file(rng, pick(rng, paths)) if rng.random() < 0.9 else "as it was"

    def call() -> Any:
        if name == "amber":
            relations, safe = amber.read_amber_words(paths[2], paths[3])
            found: Any = amber.score_amber(
                amber.read_amber_answers(paths[1]),
                annotations=amber.read_amber_annotations(paths[0]),
                relations=relations,
                safe_words=safe,
                nouns=str.split,
            )
        elif name == "mme":
            found = mme.score_mme(mme.read_mme(folder))
        elif name == "hallusionbench":
            table = hallusionbench.read_hallusionbench(paths[0], answers=True)
            found = hallusionbench.score_hallusionbench(table)
        else:
            found = mmvp.score_mmvp(
                mmvp.read_mmvp_answers(paths[1]),
                questions=mmvp.read_mmvp_questions(paths[0]),
            )
        return [str(table) for table in found.tables], found

    return Input(call, f"{name} [{said}]", MAY_BE_NAN)


def make_score(rng: Rng, folder: Path) -> Input:
    """A benchmark's score of a table that was changed by hand."""
    answers = pd.DataFrame({"id": [1, 2], "answer": ["No", "Yes"]})
    notes = pd.DataFrame(NOTES[:2]).assign(label=[False, True], hallu=[[], []])
    notes["truth"] = [[], []]
    asked = pd.DataFrame(
        {"task": "OCR", "image": "a", "label": [True, False], "answer": ["Yes", "no"]}
    )
    hallusion = pd.DataFrame(HALLUSION).rename(columns={"model_prediction": "answer"})
    hallusion["label"] = True
    chosen = pd.DataFrame({"question_id": [1, 2], "answer": "(a)"})
    options = pd.DataFrame(
        {"question_id": [1, 2], "options": "(a) Yes (b) No", "correct": "a", "pair": 1}
    )
    told = pd.DataFrame(
        {"mentions": [["cup"], []], "truth": [["cup"], ["pan"]], "caption": ["a", "b"]}
    )
    ways: list[Any] = [
        (benchmarks.score_amber, [answers], {"annotations": notes}),
        (benchmarks.score_mme, [asked], {}),
        (benchmarks.score_hallusionbench, [hallusion], {}),
        (benchmarks.score_mmvp, [chosen], {"questions": options}),
        (
            benchmarks.audit_readouts,
            [pd.DataFrame({"present": [True, False], "answer": ["Yes", "No"]})],
            {},
        ),
        (list_frontier, [{"a": told}], {"draws": FEW}),
    ]
    function, given, extra = pick(rng, ways)
    if function is list_frontier:
        given = [pick(rng, [{"a": odd_table(rng, told)}, odd(rng)])]
    elif extra and rng.random() < 0.5:
        key = next(iter(extra))
        extra = {key: odd_table(rng, extra[key])}
    else:
        given = [odd_table(rng, given[0])]
    return input_of(function, *given, may_be_nan=MAY_BE_NAN, **extra)


def make_claim(rng: Rng, folder: Path) -> Input:
    """A claim's file, changed."""
    name = pick(rng, ["vcd", "cd-says-yes", "eah-3", "pai"])
    path = folder / "claim.yaml"
    path.write_text(files("eah_interp").joinpath(f"claims/{name}.yaml").read_text())
    said = change_file(rng, path)
    found = input_of(read_claim, path, then=lambda claim: claim.to_dict())
    return Input(found.call, f"{found.shown} [{said}]")


TARGETS = {
    "outputs.files": Target(make_comparison, 3_000),
    "outputs.benchmarks": Target(make_benchmark, 3_000),
    "outputs.scores": Target(make_score, 3_000),
    "outputs.claims": Target(make_claim, 1_500),
}
