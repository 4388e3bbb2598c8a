"""Time the same jobs in other tools, side by side, and compare what they find.

    make bench                                  # makes the tools' environments too
    python docs/bench/peers.py                  # LLaVA's length; docs/performance.md
    python docs/bench/peers.py --only memory
    python docs/bench/peers.py --smoke          # a narrow model, writes nothing

Every tool is a process with an environment of its own (`peer_ways.py` says why), of
which there is one in `.venv-peers/NAME` or none: what the running environment has not
either is left out, with a line that says so. All build the same random LLaVA and read
the same prompt with its image. They run in turn, each alone while the others wait, in
their own process time; memory is the peak beyond the weights, in processes of its own.
Patching one forward a head is timed on a head of each layer, and scaled to all.
Numbers have to be those of plain transformers.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bench_report import add_parts, replace_section, say_machine
from peak_memory import ALLOCATOR
from peer_ways import (
    DIRECT,
    JOBS,
    LENS,
    N_LAYERS,
    N_TOKENS,
    PATCH,
    ROWS,
    SHAPE,
    SINKS,
    TOOLS,
)
from prefill import describe_machine

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "performance.json"
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
OURS, HAND = "eah_interp", "transformers"
NAMES = {HAND: "plain transformers"}
SHORT_TURNS = 5
"""Turns of what takes seconds, for one of what takes minutes."""
LONG = 20.0
"""Seconds from which a way is run once a turn."""
MOST_APART = {LENS: 1e-3, PATCH: 1e-3, DIRECT: 1e-3, ROWS: 1e-3, SINKS: 2 / 576}
"""Of the largest number; of densities as they are, two columns at the threshold."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Tool:
    """A process that has one tool and the model, and runs the jobs it is told to."""

    def __init__(
        self, name: str, python: Path, options: list[str], more: Mapping[str, str]
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peer_ways.py"), name, *options],
            env={
                **os.environ,
                "TQDM_DISABLE": "1",
                **more,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = self._hear()
        self.absent: str = hello.get("absent", "")
        self.labels: dict[str, str] = hello.get("jobs", {})
        self.versions: dict[str, str] = hello.get("versions", {})

    def run(self, job: str, measure: str) -> dict[str, Any]:
        """Run a job, and return what was measured.

        Args:
            job: One of its jobs.
            measure: `"time"` or `"peak"`.
        """
        assert self.process.stdin is not None
        print(json.dumps({"job": job, "measure": measure}), file=self.process.stdin)
        self.process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            msg = f"{self.name} ended without an answer: see what it printed"
            raise SystemExit(msg)
        said: dict[str, Any] = json.loads(line)
        return said


def find_python(name: str) -> Path:
    """Find the Python of a tool's environment; this one where it has none."""
    own = ENVIRONMENTS / name / "bin" / "python"
    return own if own.is_file() and name not in (OURS, HAND) else Path(sys.executable)


def start_all(options: list[str], threads: int) -> dict[str, Tool]:
    """Start every tool that is installed; say which are not."""
    found = {}
    for name in TOOLS:
        more = {"OMP_NUM_THREADS": str(threads)}
        tool = Tool(name, find_python(name), options, more)
        if tool.absent:
            print(f"{name} is left out, as it is not installed: {tool.absent}")
            tool.close()
            continue
        found[name] = tool
    return found


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    only: Annotated[
        str, typer.Option(help="times or memory; the table has all that is known.")
    ] = "",
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="One turn on a narrow model.")
    ] = False,
    out: Annotated[Path, typer.Option(help="JSON file, with its page beside.")] = OUT,
) -> None:
    """Run all jobs of all tools in turn, compare their numbers, write the table."""
    torch.set_num_threads(threads)
    if only not in ("", "times", "memory"):
        raise typer.BadParameter(f"--only {only}: expected times or memory")
    narrow = ["--smoke"] if smoke else []
    parts: dict[str, Any] = {}
    if only != "memory":
        tools = start_all(narrow, threads)
        parts["times"] = time_tools(tools, 1 if smoke else repeats, short=not smoke)
        for tool in tools.values():
            tool.close()
    if only != "times" and not (smoke and out == OUT):
        parts["memory"] = measure_tools(narrow, threads)
    if smoke and out == OUT:
        return
    result = add_parts(out, "peers", parts)
    table = write_table(result)
    replace_section(out.with_suffix(".md"), "peers", table)
    print(table)


def time_tools(
    tools: Mapping[str, Tool], repeats: int, *, short: bool
) -> dict[str, Any]:
    """Run every job of every tool in turn, and compare what they find.

    Args:
        tools: Those that there are.
        repeats: How many turns.
        short: Whether short ways have several turns for one of a long one.
    """
    record = describe_machine("cpu")
    seconds: dict[str, dict[str, list[float]]] = {job: {} for job in JOBS}
    apart: dict[str, float] = {}
    for turn in range(repeats * (SHORT_TURNS if short else 1)):
        for job in JOBS:
            values = {}
            for name, tool in tools.items():
                own = seconds[job].setdefault(name, [])
                is_long = bool(own) and own[0] > LONG
                if job in tool.labels and not (is_long and turn % SHORT_TURNS):
                    done = tool.run(job, "time")
                    values[name] = torch.tensor(done["values"])
                    own.append(done["seconds"])
            for name, found in values.items():
                if job == PATCH:
                    seconds[job][name][-1] *= scale_to_all(found, values[OURS])
                off = check_close(name, job, found, values.get(HAND, found))
                apart[job] = max(apart.get(job, 0.0), off)
    for job, of_tools in seconds.items():
        for name, own in of_tools.items():
            if own:
                print(f"{job}: {name} {statistics.median(own):.3g} s")
    return record | {
        "seconds": {
            job: {name: own for name, own in of_tools.items() if own}
            for job, of_tools in seconds.items()
        },
        "apart": apart,
        "labels": {name: tool.labels for name, tool in tools.items()},
        "tools": {name: tool.versions for name, tool in tools.items()},
    }


def scale_to_all(found: torch.Tensor, every: torch.Tensor) -> float:
    """Say by how much longer a way takes for every head than for those that it patched.

    It runs the source, the run as it is, and one forward for each head.

    Args:
        found: Effects of those that it patched.
        every: Those of all heads.
    """
    return (2 + len(every)) / (2 + len(found))


def check_close(name: str, job: str, found: torch.Tensor, hand: torch.Tensor) -> float:
    """Check that a tool's numbers are those of plain transformers.

    Returns:
        The largest difference, as `MOST_APART` has it.
    """
    if job == PATCH:
        each = hand.numel() // N_LAYERS
        found = found.view(N_LAYERS, -1)[:, :each].flatten()
    if found.shape != hand.shape:
        msg = f"{name}, {job}: {found.numel()} numbers, expected {hand.numel()}"
        raise SystemExit(msg)
    size = 1.0 if job == SINKS else float(hand.abs().max())
    off = float((found - hand).abs().max()) / size
    if not off <= MOST_APART[job]:
        msg = f"{name}, {job}: {off:.2g} off, expected at most {MOST_APART[job]:.2g}"
        raise SystemExit(msg)
    return off


def measure_tools(options: list[str], threads: int) -> dict[str, Any]:
    """Measure the peak memory of every job, in new processes that give memory back."""
    peaks: dict[str, dict[str, int]] = {job: {} for job in JOBS}
    record = describe_machine("cpu")
    more = {**ALLOCATOR, "OMP_NUM_THREADS": str(threads)}
    for name in TOOLS:
        tool = Tool(name, find_python(name), options, more)
        for job in tool.labels:
            peaks[job][name] = tool.run(job, "peak")["peak_bytes"]
        tool.close()
    return record | {"peak_bytes": peaks}


def write_table(result: Mapping[str, Any]) -> str:
    """Write the table in Markdown, of the parts that there are."""
    times, memory = result.get("times", {}), result.get("memory", {})
    said = dict.fromkeys(say_machine(part) for part in result.values())
    tools: dict[str, dict[str, str]] = times.get("tools", {})
    with_what = "; ".join(
        f"{NAMES.get(name, name)} with "
        + ", ".join(f"{package} {number}" for package, number in versions.items())
        for name, versions in tools.items()
    )
    torch_version = next(iter(result.values()))["versions"]["torch"]
    lines = [
        f"{'; '.join(said)}. {N_LAYERS} layers of {SHAPE.n_heads} heads, {N_TOKENS} "
        f"tokens; torch {torch_version}; {with_what}.",
        "",
        "| | | process seconds | x ours | peak memory, MB | x ours |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for job in JOBS:
        seconds = {
            name: statistics.median(own)
            for name, own in times.get("seconds", {}).get(job, {}).items()
        }
        peaks = memory.get("peak_bytes", {}).get(job, {})
        named = False
        for name in TOOLS:
            if name not in seconds and name not in peaks:
                continue
            label = times.get("labels", {}).get(name, {}).get(job, "")
            cells = ["" if named else job, f"{NAMES.get(name, name)}: {label}"]
            named = True
            cells += _compare(seconds, name, "{:.3g}", 1.0)
            cells += _compare(peaks, name, "{:,.0f}", 1e-6)
            lines.append("| " + " | ".join(cells) + " |")
    if times:
        lines += ["", f"Numbers differ from those of plain transformers by at most "
                  f"{max(times['apart'].values()):.1g} of the largest."]  # fmt: skip
    return "\n".join(lines)


def _compare(
    found: Mapping[str, float], name: str, form: str, unit: float
) -> list[str]:
    """Write a number, and how many times ours it is."""
    if name not in found:
        return ["", ""]
    ratio = f"{found[name] / found[OURS]:.2f}" if found.get(OURS) else ""
    return [form.format(found[name] * unit), ratio]


if __name__ == "__main__":
    app()
