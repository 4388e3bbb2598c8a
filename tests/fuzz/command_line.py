"""The command line: it ends with 0, 1 or 2 and a message, without a traceback."""

import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from eah_interp.cli import app
from tests.fuzz.evidence import write_benchmark, write_evidence
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import picture
from tests.fuzz.mutated import change_bytes, change_file
from tests.fuzz.readers import ANSWERS, QUESTIONS, SAID, SYNONYMS, write, write_coco
from tests.fuzz.studies import change_folder
from tests.fuzz.values import Rng, odd_text, pick
from tests.saved import plan

WORDS = ["", " ", "0", "-1", "1", "2", "99", "1e400", "nan", "inf", "0.5", "abc", "é猫"]
WORDS += ["0,1", "0,,1", "1,1", ",", "99999999999999999999", "1/0", "0/1", "2/1", "a/b"]
WORDS += ["visible", "paper", "official", "densest", "mean", "all", "prefill", "\ud800"]
WORDS += [
    "../..",
    ".",
    "/",
    "nowhere.png",
    "a.html",
    "²",
    "٣",
    "--",
    "-h",
    "=",
    "[x]",
    "--5",
]
WORDS += [
    "9" * 5000,
    "x" * 5000,
    "cpu",
    "cuda:99",
    "float32",
    "float64",
    "int8",
    "half",
]

OPTIONS = ["--layers", "--definition", "--beta", "--gamma", "--donor", "--recipients"]
OPTIONS += ["--steps", "--seed", "--preset", "--device", "--dtype", "--json", "--nope"]
OPTIONS += ["--model"]


class ExitError(Exception):
    """A command ended as none may."""


def run_command(words: list[str]) -> str:
    """Run a command; a refusal is raised as one."""
    from eah_interp.errors import EAHError

    found = CliRunner().invoke(app, words)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    if found.exit_code not in (0, 1, 2):
        raise ExitError(f"exit code {found.exit_code}")
    if "Traceback" in found.output:
        raise ExitError(f"a traceback: {found.output[-300:]}")
    if found.exit_code and not found.output.strip():
        raise ExitError("no message")
    if found.exit_code:
        raise EAHError(found.output[-300:])
    return found.output


def odd_word(rng: Rng) -> str:
    return odd_text(rng) if rng.random() < 0.2 else str(pick(rng, WORDS))


def odd_options(rng: Rng, names: list[str]) -> list[str]:
    words = []
    for _ in range(int(rng.integers(0, 3))):
        name = pick(rng, names)
        words.append(name)
        if name != "--json" or rng.random() < 0.05:
            words.append(odd_word(rng))
    return words


def make_image_command(rng: Rng, folder: Path) -> Input:
    image = folder / "image.png"
    picture().save(image)
    kind = rng.random()
    if kind < 0.3:
        image.write_bytes(change_bytes(rng, image.read_bytes()))
    shown: Any = image if kind < 0.9 else odd_word(rng)
    out = ["--out", pick(rng, [str(folder / "out.png"), odd_word(rng)])]
    question = "Is there a boat in the image?" if rng.random() < 0.5 else odd_word(rng)
    commands = {
        "demo": [],
        "ask": [str(shown), question, "--max-new-tokens", "2"],
        "sinks": [str(shown), "--prompt", question],
        "attribute": [
            str(shown),
            question,
            "--explain",
            pick(rng, ["boat", odd_word(rng)]),
        ],
        "attention": [
            str(shown),
            question,
            *pick(rng, [["--mean"], ["--top", "2"], ["--heads", "L1H0"], []]),
            *pick(rng, [[], ["--words", "--max-new-tokens", "2"]]),
        ],
        "report": [str(shown), question, "--out", str(folder / "a.html")],
        "models": [],
        "toy": ["--scenes", pick(rng, ["2", "0", "-1", "x"]), "--no-controls"],
    }
    often = ["ask", "sinks", "attribute", "ask", "sinks", "attention", "report"]
    name = pick(rng, [*often, *commands])
    words = [name, *commands[name], *odd_options(rng, OPTIONS)]
    if name in ("sinks", "attention") and rng.random() < 0.3:
        words += out
    words = [
        word.replace("\x00", "0") if rng.random() < 0.5 else word for word in words
    ]
    if "--out" in words and not Path(words[words.index("--out") + 1]).is_absolute():
        words[words.index("--out") + 1] = str(folder / "no" / "such.png")
    return Input(lambda: run_command(words), f"eah-interp {ascii(words)[:300]}")


def make_score_command(rng: Rng, folder: Path) -> Input:
    files = {
        "answers": write(folder / "answers.jsonl", ANSWERS, rng),
        "questions": write(folder / "questions.json", QUESTIONS, rng),
        "captions": write(folder / "captions.jsonl", SAID, rng),
        "synonyms": write(folder / "synonyms.txt", SYNONYMS, rng),
    }
    (folder / "coco").mkdir()
    coco = write_coco(folder / "coco", rng)
    said = (
        change_file(rng, pick(rng, list(files.values()))) if rng.random() < 0.8 else ""
    )
    if rng.random() < 0.2:
        said += change_file(rng, pick(rng, sorted(coco.iterdir())))
    if rng.random() < 0.6:
        words = ["score", "pope", files["answers"], "--questions", files["questions"]]
        words += odd_options(rng, ["--rule", "--json"])
    else:
        words = ["score", "chair", files["captions"], "--annotations", coco]
        words += ["--synonyms", files["synonyms"]]
        words += odd_options(rng, ["--year", "--repeats", "--json"])
    words = [str(word) for word in words]
    return Input(
        lambda: run_command(words), f"eah-interp {ascii(words)[:300]} [{said}]"
    )


def make_outputs_command(rng: Rng, folder: Path) -> Input:
    """Benchmarks scored, files compared, and claims listed, shown and tested."""
    command = pick(rng, ["amber", "mme", "hallusionbench", "mmvp", "compare", "claims"])
    if command in ("compare", "claims"):
        paths, said = write_evidence(rng, folder)
        own = sorted(paths["outputs"].iterdir())
        files = ["--annotations", paths["annotations"], "--synonyms", paths["synonyms"]]
        files += ["--resamples", pick(rng, ["100", "100", odd_word(rng)])]
        words: list[Any] = ["compare", *own, *files]
        options = ["--year", "--rule", "--image-key", "--caption-key", "--seed"]
        options += ["--questions", "--common", "--out", "--frontier", "--json"]
    else:
        files = write_benchmark(command, folder, rng)
        said = change_file(rng, pick(rng, files)) if rng.random() < 0.7 else "as it was"
        words = ["score", command, *files[:1], *pick(rng, [[], ["--json"]])]
        words += {
            "amber": ["--annotations", *files[1:2], "--relations", *files[2:3]],
            "mmvp": ["--questions", *files[1:2]],
            "mme": [],
            "hallusionbench": [],
        }[command]
        if command == "mme" and rng.random() < 0.5:
            words[2] = folder
        options = ["--json", "--questions", "--safe-words"]
    if command == "claims":
        name = pick(rng, [paths["claim"], paths["claim"], "vcd", odd_word(rng)])
        words = pick(
            rng,
            [
                ["claims", "test", name, "--outputs", paths["outputs"], *files],
                ["claims", "test", name, "--outputs", odd_word(rng)],
                ["claims", "show", name],
                ["claims", "list"],
            ],
        )
        options = ["--seed", "--scenes", "--json", "--study", "--nope"]
    words += odd_options(rng, options)
    for at, word in enumerate(words):  # pages lie nowhere but in the input's folder
        if words[at - 1] in ("--out", "--frontier") and not Path(word).is_absolute():
            words[at] = folder / pick(rng, ["a.html", "a.png", "no"])
    words = [str(word) for word in words]
    return Input(
        lambda: run_command(words), f"eah-interp {ascii(words)[:300]} [{said}]"
    )


def make_study_command(rng: Rng, folder: Path) -> Input:
    copy = folder / "study"
    shutil.copytree(pick(rng, [plan.STUDY, plan.UNFINISHED]), copy)
    said = [change_folder(rng, copy) for _ in range(int(rng.integers(0, 3)))]
    path = folder / "study.yaml"
    path.write_bytes(plan.STUDY_FILE.read_bytes())
    if rng.random() < 0.6:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    command = pick(rng, ["status", "check", "summary", "report", "run", "check"])
    given = path if command in ("check", "run") else copy
    words = ["study", command, str(given)]
    names = ["--json"]
    if command in ("summary", "report"):
        words += ["--resamples", "100", "--partial"]
        names = ["--reference", "--rule", "--seed", "--annotations", "--resamples"]
    if command == "run":
        words += ["--out", str(copy), "--shard", pick(rng, ["1/1", "0/0", "x", "9/2"])]
    words += odd_options(rng, names)
    return Input(lambda: run_command(words), f"eah-interp {ascii(words)[:300]} {said}")


TARGETS = {
    "cli.images": Target(make_image_command, 1_800),
    "cli.score": Target(make_score_command, 2_500),
    "cli.outputs": Target(make_outputs_command, 1_500),
    "cli.study": Target(make_study_command, 1_800),
}
