"""Measure the memory of showing a head's attention, against eager `output_attentions`.

    python docs/bench/attention.py            # fills docs/how-to/attention.md
    python docs/bench/attention.py --smoke    # one short prompt, writes nothing

A random LLaVA (1,024 wide, 3 layers of 32 heads, float32) reads one prompt with one
picture (576 image tokens) or with five (2,880, as many as LLaVA-NeXT has). Each way is
a process of its own, and its peak is what it needs beyond the model and the inputs:

- **plain**: SDPA, for the logits of the last position; no attention is looked at;
- **head**, **mean**: `read_patterns` under SDPA, one head's row or the mean of all;
- **eager**: transformers alone, with `output_attentions=True`.

The head's row is compared with eager's before anything is measured.
"""

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bench_report import replace_section
from peak_memory import ALLOCATOR, measure_peak
from prefill import name_device
from shaped_models import SHAPES, build_inputs, build_model, twin

import eah_interp as eah
from eah_interp.lvlm.inputs import Encoding

PAGE = Path(__file__).parents[1] / "how-to" / "attention.md"
LAYERS, HEAD = 3, (2, 7)
PROMPTS = {624: "one picture, 576 image tokens", 2928: "five pictures, 2,880"}
WAYS = {
    "plain": "plain forward, SDPA",
    "head": '`read_patterns(..., heads="L2H7")`, SDPA',
    "mean": "`read_patterns(..., mean=True)`, SDPA",
    "eager": "`output_attentions=True`, eager",
}
CLOSE = 1e-4
"""Largest difference between rows of two ways, in units of attention."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_way(way: str, n_tokens: int) -> Callable[[], Any]:
    """Build the model and the inputs; return what is measured, which gives the row."""
    built = build_model(
        SHAPES["small"], n_layers=LAYERS, dtype=torch.float32, device="cpu"
    )
    inputs = build_inputs(built, batch=1, n_tokens=n_tokens)
    layer, head = HEAD
    model = twin(built)
    if way in ("plain", "eager"):
        if way == "eager":
            model.set_attn_implementation("eager")

        def run_plain() -> Any:
            kept = {"output_attentions": True} if way == "eager" else {}
            with torch.no_grad():
                found = model(**inputs, use_cache=False, logits_to_keep=1, **kept)
            return found.attentions[layer][0, head, -1] if kept else None

        return run_plain
    wrapped = eah.wrap(model)
    asked: dict[str, Any] = {"heads": HEAD} if way == "head" else {"mean": True}
    encoding = Encoding(inputs)
    return lambda: eah.read_patterns(wrapped, encoding, **asked).plain.rows[0, 0, 0]


@app.command()
def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="One short prompt, writes nothing.")
    ] = False,
    peak_of: Annotated[tuple[str, int], typer.Option(hidden=True)] = ("", 0),
) -> None:
    """Measure every way on every prompt, and write the table."""
    torch.set_num_threads(threads)
    if peak_of[0]:
        print(measure_peak(make_way(*peak_of), device="cpu"))
        return
    shortest = min(PROMPTS)
    apart = (make_way("head", shortest)() - make_way("eager", shortest)()).abs().max()
    if not apart < CLOSE:
        msg = f"the rows differ by {apart:.1e}: expected less than {CLOSE:g}"
        raise SystemExit(msg)
    prompts = [shortest] if smoke else list(PROMPTS)
    lines = [
        f"`python docs/bench/attention.py` on "
        f"{datetime.datetime.now(datetime.UTC):%F}: {name_device('cpu')}, {threads} "
        f"threads. Peak memory beyond model and "
        f"inputs; the row of L{HEAD[0]}H{HEAD[1]} differs from eager's by "
        f"{apart:.0e} at most.",
        "",
        f"| way | {' | '.join(PROMPTS[n] for n in prompts)} | of eager |",
        "|---|" + "---:|" * (len(prompts) + 1),
    ]
    peaks = {(way, n): _peak_in_child(way, n, threads) for n in prompts for way in WAYS}
    for way, label in WAYS.items():
        cells = [f"{peaks[way, n] / 1e6:,.0f} MB" for n in prompts]
        share = peaks[way, prompts[-1]] / peaks["eager", prompts[-1]]
        lines.append(f"| {label} | {' | '.join(cells)} | {share:.1%} |")
    print("\n".join(lines))
    if not smoke:
        replace_section(PAGE, "attention", "\n".join(lines))


def _peak_in_child(way: str, n_tokens: int, threads: int) -> int:
    script = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(
        [*script, "--peak-of", way, str(n_tokens)],
        env={**os.environ, **ALLOCATOR},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    app()
