"""Items of benchmarks and tables, claims put to files, first tokens, toy scores."""

import functools
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

import eah_interp as eah
from eah_interp import benchmarks, studies
from eah_interp.benchmarks.paired import Draws
from eah_interp.toy import draw_scenes
from tests.fuzz import outputs
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import QUESTION, model, odd_image, odd_prompt, picture
from tests.fuzz.mutated import change_file
from tests.fuzz.readers import LISTS, SAID, SYNONYMS, odd_table, write
from tests.fuzz.values import Rng, change, input_of, odd, pick
from tests.saved import plan

FEW = Draws(resamples=20)
OWN = [
    {"image": f"{n}.png", "question": QUESTION, "label": word, "objects": ["cup"]}
    for n, word in ((1, "yes"), (2, "no"))
]


def write_benchmark(name: str, folder: Path, rng: Rng) -> list[Path]:
    """Write the files of a benchmark: what is scored first, then what it needs."""
    if name == "amber":
        asked = [{"id": n, "image": "1.png", "query": QUESTION} for n in (1, 2, 3)]
        return [
            write(folder / "answers.json", outputs.GIVEN, rng),
            write(folder / "annotations.json", outputs.NOTES, rng),
            write(folder / "relation.json", json.dumps(outputs.RELATIONS), rng),
            write(folder / "safe_words.txt", "light\n", rng),
            write(folder / "query_all.json", asked, rng),
        ]
    if name == "mme":
        return [write(folder / "existence.txt", outputs.LINES, rng)]
    if name == "hallusionbench":
        return [write(folder / "HallusionBench.json", outputs.HALLUSION, rng)]
    return [
        write(folder / "answers.jsonl", outputs.CHOSEN, rng),
        write(folder / "Questions.csv", outputs.OPTIONS, rng),
    ]


def make_items(rng: Rng, folder: Path) -> Input:
    """A benchmark's questions, or a table of one's own, as items of a study."""
    for n in (1, 2):
        picture().save(folder / f"{n}.png")
        picture().save(folder / f"{n}.jpg")
    name = pick(rng, ["amber", "mme", "hallusionbench", "mmvp", "table", "table"])
    values: dict[str, Any] = {"images": folder, "limit": None}
    if name == "table":
        given: Any = write(folder / "own.jsonl", OWN, rng)
        if rng.random() < 0.3:
            given = folder / "own.csv"
            pd.DataFrame(OWN).to_csv(given, index=False)
        paths = [given]
        values |= {"task": pick(rng, ["yes_no", "caption"]), "image": "image"}
        values |= {"question": "question", "label": "label", "objects": "objects"}
        values |= {"name": None, "kind": None, "cluster": None, "suffix": ""}
        values |= {"prompt": "What is it?"}
        if rng.random() < 0.3:
            given = odd_table(rng, pd.DataFrame(OWN))
        first: tuple[Any, ...] = (given,)
    else:
        paths = write_benchmark(name, folder, rng)
        at = {"amber": 4, "mmvp": 1}.get(name, 0)
        first = (folder if name == "mme" else paths[at],)
        if name == "amber":
            values["annotations"] = paths[1]
        if name != "mme":
            values["suffix"] = ""
    said = change_file(rng, pick(rng, paths)) if rng.random() < 0.7 else "as it was"
    if rng.random() < 0.1:
        first = (odd(rng),)
    found = input_of(getattr(studies, f"{name}_items"), *first, **change(rng, values))
    return Input(found.call, f"{found.shown} [{said}]")


def write_claim(folder: Path, paths: list[Path]) -> Path:
    """Write a claim whose released files are these."""
    text = files("eah_interp").joinpath("claims/vcd.yaml").read_text()
    before, _, _ = text.partition("\noutputs:\n")
    told = ["", "outputs:", "  - repository: github.com/a/b", '    commit: "abcdef0"']
    told += ["    task: caption", "    ground_truth: own"]
    for name, path in zip(("base", "patched"), paths, strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        told += [f"    {name}:", f"      path: {path.name}"]
        told += [f"      sha256: [{digest}]"]
    claim = folder / "claim.yaml"
    claim.write_text(before + "\n".join(told) + "\n")
    return claim


def write_evidence(rng: Rng, folder: Path) -> tuple[dict[str, Path], str]:
    """Write a claim, the files that it names, and what scores them; change one."""
    own = folder / "outputs"
    own.mkdir()
    paths = [write(own / name, SAID, rng) for name in ("base.jsonl", "new.jsonl")]
    paths[1].write_text(paths[1].read_text() + "\n")  # another hash
    found = {
        "annotations": write(folder / "objects.json", LISTS, rng),
        "synonyms": write(folder / "synonyms.txt", SYNONYMS, rng),
    }
    changed = pick(rng, [*paths, *found.values()])
    said = change_file(rng, changed) if rng.random() < 0.6 else "as it was"
    found["claim"] = write_claim(folder, paths)  # of the files as they are now
    if rng.random() < 0.3:
        said += ", " + change_file(rng, found["claim"])
    return found | {"outputs": own}, said


def make_evidence(rng: Rng, folder: Path) -> Input:
    """A claim put to released files, or a study's answers listed for a benchmark."""
    way = int(rng.integers(5))
    if way == 0:
        given = pick(rng, ["vcd", "nowhere", "../vcd", "nowhere.yaml", odd(rng)])
        return input_of(studies.find_claim, given, then=lambda found: found.to_dict())
    if way == 1:
        run = studies.StudyRun.load(plan.STUDY)
        values = change(rng, {"benchmark": "amber", "condition": "baseline"})
        return input_of(studies.list_answers, run, **values)
    if way == 2:
        run = studies.StudyRun.load(plan.STUDY)
        values = change(rng, {"annotations": None, "synonyms": None})
        return input_of(
            studies.list_captions, run, may_be_nan=outputs.MAY_BE_NAN, **values
        )
    paths, said = write_evidence(rng, folder)
    values = {name: paths[name] for name in ("annotations", "synonyms")}
    values |= {"lemmatize": str.split, "draws": FEW}
    if rng.random() < 0.4:
        values = change(rng, values, most=1) | {"lemmatize": str.split}
    where: Any = odd(rng) if rng.random() < 0.05 else paths["outputs"]

    def call() -> Any:
        claim = studies.find_claim(str(paths["claim"]))
        found = studies.examine_outputs(claim, where, **values)
        return found.to_dict(), str(found), found.frame()

    shown = input_of(studies.examine_outputs, where, **values).shown
    return Input(call, f"{shown} [{said}]", outputs.MAY_BE_NAN)


@functools.cache
def tokens() -> Any:
    return benchmarks.read_next_tokens(model(), [picture()] * 2, [QUESTION] * 2)


@functools.cache
def scored() -> Any:
    scenes = draw_scenes(range(2))
    return benchmarks.run_toy_benchmark(model(), scenes, progress=False)


def make_tokens(rng: Rng, folder: Path) -> Input:
    """What a model is ready to say first, and the toy's own benchmark."""
    way = int(rng.integers(5))
    nan = outputs.MAY_BE_NAN
    if way == 0:
        images, prompts = [picture()] * 2, [QUESTION] * 2
        if rng.random() < 0.4:
            images = pick(rng, [[odd_image(rng)] * 2, odd(rng), images[:1]])
        elif rng.random() < 0.5:
            prompts = pick(rng, [[odd_prompt(rng)] * 2, odd(rng), prompts[:1]])
        values = change(rng, {"patch": None, "batch_size": 8}, most=1)
        return input_of(benchmarks.read_next_tokens, model(), images, prompts, **values)
    if way == 1:
        table = pd.DataFrame({"present": [True, False], "answer": ["Yes", "No"]})
        values = change(rng, {"next_tokens": tokens()})
        return input_of(
            benchmarks.audit_readouts,
            odd_table(rng, table),
            may_be_nan=nan,
            **values,
        )
    if way == 2:
        values = change(rng, {"eah": eah.EAH(), "pairs": 1, "batch_size": 8}, most=1)
        scenes = pick(rng, [draw_scenes(range(1)), [], odd(rng)])
        if scenes is None:
            scenes = []
        return input_of(
            benchmarks.run_toy_benchmark,
            model(),
            scenes,
            may_be_nan=nan,
            then=repr,
            progress=False,
            **values,
        )
    if way == 3:
        values = change(rng, {"level": 0.9, "resamples": 20, "seed": 0})
        pair = [scored(), pick(rng, [scored(), scored(), odd(rng)])]
        return input_of(benchmarks.compare_benchmarks, *pair, may_be_nan=nan, **values)
    told = pd.DataFrame(
        {"mentions": [["cup"], []], "truth": [["cup"], ["pan"]], "caption": ["a", "b"]}
    )
    values = change(rng, {"axes": "recall", "draws": FEW}, most=1)
    given = pick(rng, [{"a": odd_table(rng, told)}, {"a": told}, odd(rng)])

    def closed(found: Any) -> None:
        import matplotlib.pyplot

        matplotlib.pyplot.close("all")

    return input_of(benchmarks.plot_frontier, given, then=closed, **values)


TARGETS = {
    "evidence.items": Target(make_items, 2_500),
    "evidence.claims": Target(make_evidence, 1_500),
    "evidence.tokens": Target(make_tokens, 1_000),
}
