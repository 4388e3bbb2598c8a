"""Time generation and one forward: plain transformers, ours unpatched, under a patch.

    python docs/bench/generation.py                           # on a CPU; fills the page
    python docs/bench/generation.py --device cuda --size 7b   # LLaVA-7B's shape
    python docs/bench/generation.py --smoke                   # seconds, writes nothing

The default model has LLaVA's 32 layers and is 32 numbers wide, so that what is timed is
the interpreter's work: what a patch costs at most. All ways run in turn, in both
directions by turns, on modules of their own around the same weights (nnsight puts
handlers into modules); ratios are medians of the repeats' own. Seconds are the
process's own on a CPU, where what else runs does not count; on CUDA they are those of
the clock, between two synchronisations.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import nnsight
import torch
import typer
from bench_report import DEPTH, replace_section
from prefill import PAGE, describe_machine, list_backends, save_result, wait_for
from shaped_models import SHAPES, build_inputs, build_model, twin

import eah_interp as eah
from eah_interp.lvlm import runs
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

NARROW = "narrow"
"""The size of the default model, beside those of `SHAPES`."""
PROMPT = "is there a cat near the boat ?"

Way = Callable[[], object]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@contextlib.contextmanager
def handlers_in_every_pass() -> Iterator[None]:
    """Generate as nnsight itself does: its handlers stand in every pass."""
    known, runs.IS_KNOWN = runs.IS_KNOWN, False
    try:
        yield
    finally:
        runs.IS_KNOWN = known


def make_ways(
    size: str, *, n_layers: int, n_tokens: int, device: str, dtype: str, attention: str
) -> dict[str, dict[str, Way]]:
    """Build a model and all ways to run it, by what is compared: the first is plain."""
    processor: Any = tiny_processor("llava") if size == NARROW else None
    built = (
        tiny_lvlm("llava", n_layers=n_layers).to(device)
        if size == NARROW
        else build_model(
            SHAPES[size], n_layers=n_layers, dtype=getattr(torch, dtype), device=device
        )
    )
    plain, traced, wrapped = twin(built), twin(built), twin(built)
    for one in (plain, traced, wrapped):
        one.set_attn_implementation({"text_config": attention})
    model = eah.wrap(wrapped, processor)
    patched = eah.edit(model, eah.EAH())
    image = random_image(0)

    def encode() -> dict[str, Any]:
        if processor is None:
            return build_inputs(built, batch=1, n_tokens=624)
        return {k: v.to(device) for k, v in model.encode(image, PROMPT).items()}

    inputs = encode()
    new = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False}
    start = inputs["input_ids"].shape[1]

    def generate(one: Any, way: Callable[[], Any] = contextlib.nullcontext) -> Way:
        def run() -> object:
            with way():
                return one.generate(**inputs, **new)

        return run

    @torch.no_grad()
    def forward() -> object:
        return plain(**inputs).logits

    ways: dict[str, dict[str, Way]] = {
        f"{n_tokens} tokens": {
            "plain `generate`": generate(plain),
            "`generate` of `eah.wrap`, no patch": generate(model),
            "`generate` under EAH of the prompt": generate(patched),
            "no patch, handlers in every pass": generate(model, handlers_in_every_pass),
            "EAH, handlers in every pass": generate(patched, handlers_in_every_pass),
        },
        "one forward": {
            "plain forward": forward,
            "bare trace of `nnsight.NNsight`": trace(nnsight.NNsight(traced), inputs),
            "bare trace of `eah.wrap`": trace(model, inputs),
            "EAH in a trace": trace(model, inputs, eah.EAH()),
        },
    }
    if processor is not None:
        ways["image to text"] = {
            "plain: encode, `generate`, decode": lambda: processor.batch_decode(
                plain.generate(**encode(), **new)[:, start:]
            ),
            "`describe`, no patch": lambda: model.describe(image, PROMPT, **new),
            "`describe` under EAH": lambda: patched.describe(image, PROMPT, **new),
        }
    return ways


def trace(
    model: Any, inputs: Mapping[str, Any], settings: eah.EAH | None = None
) -> Way:
    """Make a trace of one forward that reads its logits."""

    @torch.no_grad()
    def run() -> object:
        with model.trace(**inputs):
            if settings is not None:
                eah.intervene(model, settings)
            logits = model.output.logits.save()
        return logits  # noqa: RET504 - saved inside the block, usable after it

    return run


@app.command()
def main(
    *,
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    size: Annotated[str, typer.Option(help=f"{NARROW}, {', '.join(SHAPES)}.")] = NARROW,
    layers: Annotated[int, typer.Option(min=2)] = DEPTH,
    tokens: Annotated[int, typer.Option(min=1, help="To generate.")] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 21,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 on CUDA.")] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; sdpa (CUDA: and FlashAttention, Flex)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file, with its page beside.")] = PAGE,
    smoke: Annotated[
        bool, typer.Option("--smoke", "--quick", help="Once, few tokens.")
    ] = False,
) -> None:
    """Time all ways in turn; write docs/performance.json and its page."""
    torch.set_num_threads(1)
    if smoke:
        layers, tokens, repeats = 3, 3, 1
    result = describe_machine(device)
    left_out: list[str] = []
    for backend in attention or list_backends(left_out, cuda=device == "cuda"):
        try:
            ways = make_ways(
                size,
                n_layers=layers,
                n_tokens=tokens,
                device=device,
                dtype=dtype or ("bfloat16" if device == "cuda" else "float32"),
                attention=backend,
            )
            times = {
                what: time_ways(group, repeats * (8 if what == "one forward" else 1),
                                device=device)
                for what, group in ways.items()
            }  # fmt: skip
        except Exception as error:
            if backend == "sdpa":
                raise
            left_out.append(f"{backend}: {str(error).splitlines()[0]}")
            continue
        setting = {
            "size": size,
            "n_layers": layers,
            "attention": backend,
            "repeats": repeats,
            "rows": {what: summarize(group) for what, group in times.items()},
            "seconds": times,
        }
        result["settings"].append(setting)
    result["left_out"] = left_out
    text = write_markdown(result)
    print(text)
    if not smoke or out != PAGE:
        save_result(result, f"generation-{device}", out)
        replace_section(out.with_suffix(".md"), f"generation-{device}", text)


def time_ways(
    ways: Mapping[str, Way], repeats: int, *, device: str
) -> dict[str, list[float]]:
    """Time ways in turn, A B C, C B A, after a warm-up."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            wait_for(device)
            start = clock()
            ways[name]()
            wait_for(device)
            times[name].append(clock() - start)
    return times


def summarize(times: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Take the median seconds, and the median and quartiles of ratios to the first."""
    base = next(iter(times.values()))
    rows = {}
    for name, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "seconds": statistics.median(seconds),
            "to_plain": statistics.median(ratios),
            "quartiles": [ratios[quarter], ratios[-1 - quarter]],
        }
    return rows


def write_markdown(result: Mapping[str, Any]) -> str:
    """Write a result as the Markdown between a page's markers."""
    where, versions = result["hardware"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"`{result['command']}` on {result['date'][:10]}: {where['device']}, "
        f"{where['threads']} threads, load {where['load']} when it began; {packages}.",
    ]
    for setting in result["settings"]:
        lines += [
            "",
            f"**{setting['n_layers']} layers, {setting['size']}, "
            f"{setting['attention']}; {setting['repeats']} repeats (8 times as many "
            "of one forward).**",
            "",
            "| | | ms | x plain | middle half of the repeats |",
            "|---|---|---:|---:|---:|",
        ]
        for what, rows in setting["rows"].items():
            lines += [
                f"| {what} | {name} | {1e3 * row['seconds']:,.1f} "
                f"| {row['to_plain']:.3f} "
                f"| {row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f} |"
                for name, row in rows.items()
            ]
    notes = [f"- Left out: {note}." for note in result["left_out"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


if __name__ == "__main__":
    app()
