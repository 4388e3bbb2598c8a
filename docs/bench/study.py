"""Time a whole study on two cores, and write what it found.

    python docs/bench/study.py           # docs/studies/toy.yaml; docs/toy-study.md
    python docs/bench/study.py --smoke   # two scenes, writes nothing

Two shards run side by side, a process and a thread each, as `eah-interp study run
--shard 1/2` does; then the summary and the report are made. The clock runs from the
first command to the end of the report: starting Python and loading the model count.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from eah_interp.files import save_bytes
from eah_interp.studies import StudyFile, StudyRun, answer_claims, summarise

HERE = Path(__file__).parent
STUDY = HERE.parent / "studies" / "toy.yaml"
PAGE = HERE.parent / "toy-study.md"
N_SHARDS = 2
MINUTES = 15
"""The time that the study must take less than."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run_command(*words: str) -> subprocess.Popen[bytes]:
    """Start an `eah-interp` command on one thread."""
    program = "from eah_interp.cli import app; app()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def time_study(file: Path, folder: Path) -> dict[str, float]:
    """Run a study in shards, then report it; seconds of each part."""
    started = time.perf_counter()
    shards = [
        run_command(
            *("study", "run", str(file), "--out", str(folder)),
            *("--shard", f"{number}/{N_SHARDS}"),
        )
        for number in range(1, N_SHARDS + 1)
    ]
    if any(shard.wait() for shard in shards):
        sys.exit("a shard failed; run it by hand to see why")
    rows = time.perf_counter()
    if run_command("study", "report", str(folder)).wait():
        sys.exit("the report failed; run it by hand to see why")
    return {"rows": rows - started, "report": time.perf_counter() - rows}


def write_page(run: StudyRun, seconds: dict[str, float], load: float) -> str:
    """Write the page: time, claims, tables."""
    whole = sum(seconds.values())
    n_rows = len(run.frame())
    facts = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "load before": f"{load:.1f}",
        "date": datetime.date.today().isoformat(),
    }
    parts = [
        "# A whole study of the toy",
        "Made by `python docs/bench/study.py` from `docs/studies/toy.yaml`; not edited "
        "by hand. One training run of the toy (its first seed): intervals are over "
        "scenes and say nothing of other training runs; [the toy's card](toy.md) does.",
        "## Time",
        f"{n_rows:,} answers in {seconds['rows'] / 60:.1f} minutes by {N_SHARDS} "
        f"processes of one thread, the report in {seconds['report']:.0f} s: "
        f"{whole / 60:.1f} minutes in all (asked for: under {MINUTES}).",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## The paper's claims",
    ]
    for claim in answer_claims(run):
        parts.append(f"**{claim.number}. {claim.statement}** *{claim.verdict}*")
        parts.append(
            "\n".join(
                f"- {finding.what}: {finding} (*{finding.verdict}*)"
                for finding in claim.findings
            )
        )
    tables = summarise(run).markdown().split("\n", 1)[1].strip()
    return "\n\n".join([*parts, "## Every number", tables]) + "\n"


@app.command()
def main(
    *,
    smoke: Annotated[bool, typer.Option(help="Two scenes; writes nothing.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Where the study goes.")] = None,
) -> None:
    """Time the study, and fill the page."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = STUDY, keep or Path(scratch) / "study"
        if smoke:
            file = Path(scratch) / "smoke.yaml"
            text = STUDY.read_text().replace("n_scenes: 500", "n_scenes: 2")
            file.write_text(text)
        StudyFile.load(file)
        seconds = time_study(file, folder)
        page = write_page(StudyRun.load(folder), seconds, load)
        print(json.dumps(seconds))
        if not smoke:
            save_bytes(page.encode(), PAGE)
            print(f"Written: {PAGE}")


if __name__ == "__main__":
    app()
