"""Time one prefill of a LLaVA-shaped random model: plain, traced, EAH, as released.

    python docs/bench/prefill.py                   # on a CPU; fills docs/performance.md
    python docs/bench/prefill.py --device cuda     # the same with a CUDA device
    python docs/bench/prefill.py --smoke           # tiny; takes seconds, writes nothing

Every repeat runs all variants in turn, so a slow moment of the machine hits them alike,
and every ratio is the median of the repeats' own ratios. Each variant has modules of
its own around the same weights: nnsight instruments modules, so the plain model stays
plain. docs/performance.md says what is measured, `bench_report.py` does the sums.
"""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from bench_report import (
    DEPTH,
    draw_table,
    measure_slope,
    replace_section,
    rows_as_data,
    summarize,
    write_markdown,
)
from peak_memory import ALLOCATOR, measure_peak
from prefill_variants import TIMED, VARIANTS, Run, make_run
from rich.console import Console
from rich.progress import Progress
from shaped_models import SHAPES, build_inputs, build_model
from torch import Tensor
from transformers import PreTrainedModel

HERE = Path(__file__).parent
PAGE = HERE.parent / "performance.json"
SHALLOW = 2
"""Depth of the shallow twins: the least that has layers 0 and 1."""
SLOPES = ("plain", "trace", "released")
"""One variant of each kind; their shallow twins are timed too."""
ANY_BACKEND = ("plain", "trace", "eah_1", "eah_2", "fixed")
"""Timed under FlashAttention and Flex; the rest would only repeat SDPA's story."""

console = Console(width=200, stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Setting:
    """One model and prompt that all variants are timed on."""

    device: str
    size: str
    n_layers: int
    dtype: str
    batch: int
    tokens: int
    attention: str = "sdpa"

    def build(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """Build the model and its inputs."""
        model = build_model(
            SHAPES[self.size],
            n_layers=self.n_layers,
            dtype=getattr(torch, self.dtype),
            device=self.device,
        )
        return model, build_inputs(model, batch=self.batch, n_tokens=self.tokens)


@app.command()
def main(
    *,
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    size: Annotated[str, typer.Option(help=f"Width: {', '.join(SHAPES)}.")] = "7b",
    layers: Annotated[
        int | None, typer.Option(help="Decoder layers; 4 on a CPU, 32 on CUDA.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="7 on a CPU, 20 on CUDA.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Repeatable; 1 (CUDA: and 8).")
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Repeatable; 624 (CUDA: and one prompt of 2928)."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 on a CPU, bfloat16 on CUDA.")
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; sdpa (CUDA: and FlashAttention, Flex)."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable: {', '.join(VARIANTS)}.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; all cores.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file; the page beside it (.md) gets the table."),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", "--quick", help="Tiny model, one repeat.")
    ] = False,
    peak_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time a prefill in every variant; write docs/performance.json and its page."""
    cuda = device == "cuda"
    if smoke:
        size, layers, repeats, memory = "tiny", layers or 3, repeats or 1, False
    else:
        out = out or PAGE
        threads = threads or len(os.sched_getaffinity(0))
    if threads is not None:
        torch.set_num_threads(threads)
    base = Setting(
        device=device,
        size=size,
        n_layers=layers or (DEPTH if cuda else 4),
        dtype=dtype or ("bfloat16" if cuda else "float32"),
        batch=1,
        tokens=624,
    )
    if peak_of is not None:
        base = replace(base, batch=(batch or [1])[0], tokens=(tokens or [624])[0])
        model, inputs = base.build()
        run = make_run(peak_of, model, inputs)
        sys.stdout.write(str(measure_peak(run, device=device)))
        return
    names = tuple(dict.fromkeys(["plain", "trace", *(variant or TIMED)]))
    result = describe_machine(device)
    left_out: list[str] = []
    for prompt in list_prompts(batch, tokens, cuda=cuda and not smoke):
        for backend in attention or list_backends(left_out, cuda=cuda):
            setting = replace(
                base, batch=prompt[0], tokens=prompt[1], attention=backend
            )
            wanted = names if backend == "sdpa" else ANY_BACKEND
            try:
                measured = measure(setting, wanted, repeats or (20 if cuda else 7))
            except Exception as error:
                if backend == "sdpa":
                    raise
                left_out.append(f"{backend}, {prompt}: {str(error).splitlines()[0]}")
                continue
            if memory:
                measured["peak_bytes"] |= measure_memory(setting, wanted)
            result["settings"].append(measured)
            Console(width=200).print(draw_table(measured))
    result["left_out"] = left_out
    if out is not None:
        write_result(result, device, out)


def list_prompts(
    batches: Sequence[int] | None, tokens: Sequence[int] | None, *, cuda: bool
) -> list[tuple[int, int]]:
    """Choose batch sizes and prompt lengths: the user's, or the device's usual ones."""
    if batches is None and tokens is None:
        return [(1, 624), (8, 624), (1, 2928)] if cuda else [(1, 624)]
    return [(b, t) for t in tokens or [624] for b in batches or [1]]


def list_backends(left_out: list[str], *, cuda: bool) -> list[str]:
    """List the attention backends that this machine can run; note the others."""
    if not cuda:
        return ["sdpa"]
    from transformers.utils import (
        is_flash_attn_2_available,
        is_flash_attn_3_available,
        is_torch_flex_attn_available,
    )

    found = {
        "flash_attention_2": is_flash_attn_2_available(),
        "flash_attention_3": is_flash_attn_3_available(),
        "flex_attention": is_torch_flex_attn_available(),
    }
    left_out += [f"{name} (not here)" for name, there in found.items() if not there]
    return ["sdpa", *(name for name, there in found.items() if there)]


# -- measuring -----------------------------------------------------------------------


def measure(setting: Setting, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Time the variants of one setting, and see that they agree.

    Args:
        setting: The model and the prompt.
        names: Variants; `plain` and `trace` among them.
        repeats: How often each is timed, after a warm-up.

    Returns:
        Times, the rows of the table, and the distance of logits from the plain ones.
    """
    model, inputs = setting.build()
    runs = {
        name: make_run(name, model, inputs, attention=setting.attention)
        for name in names
    }
    if SHALLOW < setting.n_layers < DEPTH:
        for name in SLOPES:
            if name in names:
                runs[f"{name}@shallow"] = make_run(
                    name,
                    model,
                    inputs,
                    n_layers=SHALLOW,
                    attention=setting.attention,
                )
    logits = {name: run() for name, run in runs.items()}  # warms up as well
    moved = {
        name: float((own - logits["plain"]).abs().max())
        for name, own in logits.items()
        if "@" not in name
    }
    del logits
    times = time_runs(runs, repeats, device=setting.device)
    config = model.config.text_config
    deeper = DEPTH - config.num_hidden_layers
    return {
        "batch": setting.batch,
        "tokens": setting.tokens,
        "image_tokens": int(
            (inputs["input_ids"][0] == model.config.image_token_id).sum()
        ),
        "n_layers": setting.n_layers,
        "n_shallow": SHALLOW,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "dtype": setting.dtype,
        "attention": setting.attention,
        "repeats": repeats,
        "seconds_per_layer": measure_slope(times, "trace", setting.n_layers - SHALLOW)
        if "trace@shallow" in times
        else None,
        "rows": rows_as_data(
            summarize(times, n_layers=setting.n_layers, n_shallow=SHALLOW)
        ),
        "seconds": times,
        "largest_change_of_logits": moved,
        "weight_bytes_of_32_layers": count_bytes(model)
        + deeper * count_bytes(model.get_decoder().layers[0]),
        "peak_bytes": peak_on_cuda(runs) if setting.device == "cuda" else {},
    }


def time_runs(
    runs: Mapping[str, Run], repeats: int, *, device: str
) -> dict[str, list[float]]:
    """Time runs in turn: A B C, A B C, ...

    Args:
        runs: What to time; each has run once.
        repeats: How often.
        device: On "cuda", every time starts and ends with an idle device.

    Returns:
        Seconds of each, in order.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    warm_ups = 2 if device == "cuda" else 0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("prefills", total=(repeats + warm_ups) * len(runs))
        for repeat in range(-warm_ups, repeats):
            for name, run in runs.items():
                wait_for(device)
                start = time.perf_counter()
                logits = run()
                wait_for(device)
                if repeat >= 0:
                    times[name].append(time.perf_counter() - start)
                del logits
                progress.advance(task)
    return times


def wait_for(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_on_cuda(runs: Mapping[str, Run]) -> dict[str, int]:
    """Measure peaks in this process: CUDA's allocator counts exactly."""
    return {
        name: measure_peak(run, device="cuda")
        for name, run in runs.items()
        if "@" not in name
    }


def measure_memory(setting: Setting, names: Sequence[str]) -> dict[str, int]:
    """Measure each variant's peak on a CPU, in a process of its own, at two layers."""
    if setting.device == "cuda":
        return {}
    peaks = {}
    for name in names:
        command = [sys.executable, str(HERE / "prefill.py"), "--peak-of", name]
        for option, value in {
            "size": setting.size,
            "layers": SHALLOW,
            "batch": setting.batch,
            "tokens": setting.tokens,
            "dtype": setting.dtype,
            "threads": torch.get_num_threads(),
        }.items():
            command += [f"--{option}", str(value)]
        console.log(f"peak memory of {name}")
        done = subprocess.run(
            command,
            env={**os.environ, **ALLOCATOR},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks[name] = int(done.stdout)
    return peaks


def count_bytes(module: torch.nn.Module) -> int:
    """Count the bytes of a module's weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


# -- writing -------------------------------------------------------------------------


def describe_machine(device: str) -> dict[str, Any]:
    """Note when, how and on what this runs."""
    packages = ("torch", "transformers", "nnsight")
    script = Path(sys.argv[0])
    inside = script.resolve().is_relative_to(HERE.parents[1])
    shown = script.resolve().relative_to(HERE.parents[1]) if inside else script
    return {
        "command": shlex.join(["python", str(shown), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "hardware": {
            "device": name_device(device),
            "threads": torch.get_num_threads(),
            "load": f"{os.getloadavg()[0]:.1f}",
        },
        "settings": [],
    }


def name_device(device: str) -> str:
    """Name the GPU, or the processor and how many of its cores are ours."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {cores} cores"
    return f"{platform.machine()}, {cores} cores"


def write_result(result: Mapping[str, Any], device: str, out: Path) -> None:
    """Write the JSON, keeping other devices' results, and the page's table."""
    save_result(result, device, out)
    page = out.with_suffix(".md")
    if not page.is_file():
        page.write_text(f"<!-- bench:{device} -->\n<!-- /bench:{device} -->\n")
    replace_section(page, device, write_markdown(result))
    console.log(f"wrote {out}")


def save_result(result: Mapping[str, Any], name: str, out: Path) -> None:
    """Write a result into the JSON under its name, keeping the others."""
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    kept[name] = result
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
