"""Time gradient approximations of all heads against one plain forward.

    python docs/bench/gradient.py            # toy and wide; fills docs/performance.md
    python docs/bench/gradient.py --smoke    # toy, one repeat, writes nothing

All ways answer the same: what putting each head's output of the EAH run into the plain
run does to one logit. The plain forward is that of a model of the same weights which
nnsight never saw, for the logits of the last position alone. Every repeat runs all ways
in turn; ratios are medians of the repeats' own.
"""

import datetime
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bench_report import replace_section
from peak_memory import ALLOCATOR, measure_peak
from prefill import name_device
from shaped_models import SHAPES, build_inputs, build_model, twin
from transformers import AutoModelForImageTextToText

import eah_interp as eah
from eah_interp.attribution import Case, pose
from eah_interp.attribution.gradient import approximate_heads
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding
from eah_interp.toy import TOYS, draw_scenes, prompt_for, toy_path

PAGE = Path(__file__).parents[1] / "performance.md"
MOST_FORWARDS = 6.0
"""Plain forwards that attribution patching of all heads may take."""

MODELS = {
    "toy": "the toy (8 layers of 8 heads)",
    "wide": "random LLaVA, 1,024 wide, 624 tokens (6 layers of 32 heads)",
}
WAYS: dict[str, dict[str, Any]] = {
    "plain forward": {},
    "attribution patching": {"check": 0},
    "attribution patching, 16 heads checked": {"check": 16},
    "integrated gradients, 8 steps": {"check": 0, "method": "integrated_gradients"},
}

Way = Callable[[], object]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_ways(name: str) -> dict[str, Way]:
    """Build a model and every way to ask it."""
    model, plain, case = _build_toy() if name == "toy" else _build_wide()

    def run_plain() -> object:
        with torch.no_grad():
            return plain(**case.inputs, use_cache=False, logits_to_keep=1).logits

    def ask(settings: dict[str, Any]) -> Way:
        return lambda: approximate_heads(model, case, source=eah.EAH(), **settings)

    ways = {way: ask(settings) for way, settings in WAYS.items()}
    if name != "toy":  # minutes for each repeat, and the same story
        del ways["integrated gradients, 8 steps"]
    return {**ways, "plain forward": run_plain}


def _build_toy() -> tuple[Any, Any, Case]:
    model = eah.load()
    (scene,) = draw_scenes(range(1))
    prompt = prompt_for("Is there a boat in the image?")
    case = pose(model, scene.pil(), prompt, objects=["boat"])
    plain = AutoModelForImageTextToText.from_pretrained(toy_path(TOYS[0]))
    return model, plain.eval(), case


def _build_wide() -> tuple[Any, Any, Case]:
    built = build_model(SHAPES["small"], n_layers=6, dtype=torch.float32, device="cpu")
    inputs = Encoding(build_inputs(built, batch=1, n_tokens=624))
    readout = read_tokens([("word", 0, 623, "word", [(623, 1000, 1.0)])])
    return eah.wrap(twin(built)), twin(built), Case(inputs, None, readout)


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="Toy, one repeat, writes nothing.")
    ] = False,
    peak_of: Annotated[tuple[str, str], typer.Option(hidden=True)] = ("", ""),
) -> None:
    """Time all ways in turn on both models, and write the table."""
    torch.set_num_threads(threads)
    if peak_of[0]:
        print(measure_peak(make_ways(peak_of[0])[peak_of[1]], device="cpu"))
        return
    lines = [
        f"`python docs/bench/gradient.py` on {datetime.datetime.now(datetime.UTC):%F}: "
        f"{name_device('cpu')}, {threads} threads, load {os.getloadavg()[0]:.1f} when "
        f"it began; {repeats} repeats.",
        "",
        "| | | seconds | plain forwards | range | peak memory, MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    worst = 0.0
    for name in list(MODELS)[: 1 if smoke else None]:
        times = _time(make_ways(name), 1 if smoke else repeats)
        for way, seconds in times.items():
            ratios = [
                own / plain
                for own, plain in zip(seconds, times["plain forward"], strict=True)
            ]
            ratio = statistics.median(ratios)
            if way == "attribution patching":
                worst = max(worst, ratio)
            peak = 0 if smoke else _peak_in_child(name, way, threads)
            lines.append(
                f"| {MODELS[name]} | {way} | {statistics.median(seconds):.3g} "
                f"| {ratio:.1f} | {min(ratios):.1f} to {max(ratios):.1f} "
                f"| {peak / 1e6:.0f} |"
            )
    print("\n".join(lines))
    if smoke:
        return
    replace_section(PAGE, "gradient", "\n".join(lines))
    if worst > MOST_FORWARDS:
        msg = (
            f"attribution patching takes {worst:.1f} plain forwards: expected at most "
            f"{MOST_FORWARDS:g}"
        )
        raise SystemExit(msg)


def _time(ways: dict[str, Way], repeats: int) -> dict[str, list[float]]:
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - start)
    return times


def _peak_in_child(name: str, way: str, threads: int) -> int:
    script = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(
        [*script, "--peak-of", name, way],
        env={**os.environ, **ALLOCATOR},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    app()
