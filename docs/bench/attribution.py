"""Time exact patching of every head against one forward pass for every head.

    python docs/bench/attribution.py            # on the toy; fills docs/performance.md
    python docs/bench/attribution.py --smoke    # one repeat, writes nothing

Both put each head's output of the EAH run into the plain run, and give the change of
two objects' logits. Every repeat runs all ways in turn; ratios are medians of the
repeats' own. docs/performance.md says what is measured.
"""

import datetime
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench_report import replace_section
from peak_memory import ALLOCATOR, measure_peak
from prefill import name_device
from torch import Tensor

import eah_interp as eah
from eah_interp.attribution import Case, pose
from eah_interp.attribution.patching import patch_heads
from eah_interp.toy import draw_scenes, prompt_for

HERE = Path(__file__).parent
PAGE = HERE.parent / "performance.md"
OBJECTS = ("boat", "fish")
LEAST_RATIO = 3.0
MOST_APART = 1e-5
"""Of effects, as a share of the largest logit or of 1."""

Way = Callable[[], Tensor]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_ways(model: eah.LVLM, case: Case) -> dict[str, Way]:
    """Make every way to patch all heads; each gives `[target head]` effects."""
    inputs, settings = case.inputs, eah.EAH()
    layers = model.model.language_model.layers
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(8)]
    width = model.d_head

    def read_outputs() -> list[Tensor]:
        outputs: list[Tensor] = []
        with torch.no_grad(), model.trace(**inputs, use_cache=False):
            outputs.append(layers[0].self_attn.o_proj.input)
            eah.intervene(model, settings)  # in layer 1
            for layer in layers[1:]:
                outputs.append(layer.self_attn.o_proj.input)
        return outputs

    def one_trace_each() -> Tensor:
        outputs = read_outputs()
        value = one_forward()
        effects = []
        for layer, head in heads:
            columns = slice(head * width, (head + 1) * width)
            with torch.no_grad(), model.trace(**inputs, use_cache=False):
                z = layers[layer].self_attn.o_proj.input.clone()
                z[..., columns] = outputs[layer][..., columns]
                layers[layer].self_attn.o_proj.input = z
                logits = model.output.logits.save()
            effects.append(case.readout.values(logits) - value)
        return torch.stack(effects, 1)

    def one_hook_each() -> Tensor:
        outputs = read_outputs()
        value = one_forward()
        effects = []
        for layer, head in heads:
            columns = slice(head * width, (head + 1) * width)

            def replace(
                module: torch.nn.Module,
                args: tuple[Tensor],
                columns: slice = columns,
                new: Tensor = outputs[layer],
            ) -> tuple[Tensor]:
                del module
                z = args[0].clone()
                z[..., columns] = new[..., columns]
                return (z,)

            projection = layers[layer].self_attn.o_proj._module
            handle = projection.register_forward_pre_hook(replace)
            with torch.no_grad():
                logits = model._module(**inputs, use_cache=False).logits
            handle.remove()
            effects.append(case.readout.values(logits) - value)
        return torch.stack(effects, 1)

    def one_forward() -> Tensor:
        with torch.no_grad(), model.trace(**inputs, use_cache=False):
            logits = model.output.logits.save()
        return case.readout.values(logits)

    return {
        "patch_heads": lambda: patch_heads(model, case, source=settings).effects,
        "one trace for each head": one_trace_each,
        "one plain forward with a hook for each head": one_hook_each,
        "one forward (a bare trace)": one_forward,
    }


def prepare() -> tuple[dict[str, Way], Case]:
    """Load the toy, and ask for two objects' logits in one scene."""
    model = eah.load()
    (scene,) = draw_scenes(range(1))
    prompt = prompt_for("Is there a boat in the image?")
    case = pose(model, scene.pil(), prompt, objects=OBJECTS)
    return make_ways(model, case), case


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="One repeat, writes nothing.")
    ] = False,
    peak_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time all ways in turn, compare their numbers, and write the table."""
    torch.set_num_threads(threads)
    ways, _ = prepare()
    if peak_of:
        print(measure_peak(ways[peak_of], device="cpu"))
        return
    first, *others = ways
    expected = ways["one trace for each head"]()
    apart = float((ways[first]() - expected).abs().max())
    if apart > MOST_APART:
        msg = f"patch_heads is {apart:.2g} off: expected at most {MOST_APART:g}"
        raise SystemExit(msg)
    load = os.getloadavg()[0]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if smoke else repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = {
        name: [
            slow / fast for slow, fast in zip(times[name], times[first], strict=True)
        ]
        for name in others
    }
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} x patch_heads {found}")
    ratio = statistics.median(ratios["one trace for each head"])
    if smoke:
        return
    peaks = {name: peak_in_child(name, threads) for name in ways}
    table = write_table(times, ratios, peaks, apart=apart, load=load)
    replace_section(PAGE, "attribution", table)
    print(table)
    if ratio < LEAST_RATIO:
        msg = f"patch_heads saves {ratio:.1f} x: expected at least {LEAST_RATIO:g} x"
        raise SystemExit(msg)


def peak_in_child(name: str, threads: int) -> int:
    """Measure one way's peak memory in a process of its own."""
    script = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(
        [*script, "--peak-of", name],
        env={**os.environ, **ALLOCATOR},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def write_table(
    times: dict[str, list[float]],
    ratios: dict[str, list[float]],
    peaks: dict[str, int],
    *,
    apart: float,
    load: float,
) -> str:
    """Write the table of all ways in Markdown."""
    day = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"`python docs/bench/attribution.py` on {day}: {name_device('cpu')}, "
        f"{torch.get_num_threads()} threads, load {load:.1f} when it began; "
        f"{len(next(iter(times.values())))} repeats.",
        "",
        "| | seconds | to `patch_heads` | range | peak memory, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, seconds in times.items():
        found = ratios.get(name, [1.0])
        lines.append(
            f"| {name} | {statistics.median(seconds):.3g} "
            f"| {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} "
            f"| {peaks[name] / 1e6:.0f} |"
        )
    said = "Effects of `patch_heads` and of one trace for each head differ by at most"
    lines += ["", f"{said} {apart:.1g}."]
    return "\n".join(lines)


if __name__ == "__main__":
    app()
