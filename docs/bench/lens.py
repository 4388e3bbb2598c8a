"""Time the lens of the last position against the same by hand in plain transformers.

    python docs/bench/lens.py            # LLaVA's length; docs/performance.md
    python docs/bench/lens.py --smoke    # one repeat on a narrow model

By hand: forward hooks keep the last token's stream of each layer, which goes through
the final norm and the unembedding; logit, rank and probability of one token. Every
repeat runs all ways in turn, and ratios are medians of the repeats' own, in process
time. What both say is compared first.
"""

import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench_report import replace_section
from prefill import name_device
from shaped_models import Shape, build_inputs, build_model, twin
from torch import Tensor, nn

import eah_interp as eah
from eah_interp.attribution import Case
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import tiny_processor

PAGE = Path(__file__).parents[1] / "performance.md"
N_TOKENS = 624
TOKEN = 1234
MOST_APART = 1e-3
SHAPE = Shape(d_model=1024, d_mlp=2752, n_heads=16)
NARROW = Shape(d_model=64, d_mlp=128, vocab=2000, n_heads=4)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_ways(shape: Shape, n_layers: int) -> dict[str, Callable[[], Tensor]]:
    """Make every way; each returns `[point]` logits of one token at the answer."""
    built = build_model(shape, n_layers=n_layers, dtype=torch.float32, device="cpu")
    plain, model = twin(built), eah.wrap(twin(built), tiny_processor("llava"))
    inputs = build_inputs(built, batch=1, n_tokens=N_TOKENS)
    target = ("word", 0, N_TOKENS - 1, "word", [(N_TOKENS - 1, TOKEN, 1.0)])
    case = Case(Encoding(inputs), None, read_tokens([target]))
    decoder = plain.get_decoder()

    @torch.no_grad()
    def by_hand() -> Tensor:
        streams: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Tensor]) -> None:
            del module
            streams.append(args[0][:, -1])

        def leave(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            del module, args
            streams.append(output[:, -1])

        handles = [decoder.layers[0].register_forward_pre_hook(enter)]
        handles += [layer.register_forward_hook(leave) for layer in decoder.layers]
        plain(**inputs, use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        read = [plain.lm_head(decoder.norm(stream))[0] for stream in streams]
        logits = torch.stack(read)
        (logits > logits[:, TOKEN, None]).sum(-1)
        logits.softmax(-1)
        return logits[:, TOKEN]

    def ours(positions: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            return eah.logit_lens(model, case, positions=positions).plain.logit[0, :, 0]

        return run

    return {
        "by hand, last position": by_hand,
        "logit_lens, last position": ours("answer"),
        "logit_lens, image positions too": ours("image"),
    }


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="One repeat on a narrow model.")
    ] = False,
) -> None:
    """Time all ways in turn, compare their numbers, and write the table."""
    torch.set_num_threads(threads)
    ways = make_ways(NARROW if smoke else SHAPE, layers)
    found = {name: run() for name, run in ways.items()}
    first = next(iter(ways))
    apart = max(float((one - found[first]).abs().max()) for one in found.values())
    if apart > MOST_APART:
        msg = f"ways are {apart:.2g} apart: expected at most {MOST_APART:g}"
        raise SystemExit(msg)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if smoke else repeats):
        for name, run in ways.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    rows = []
    for name, seconds in times.items():
        ratios = [one / hand for one, hand in zip(seconds, times[first], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        cells = [name, f"{statistics.median(seconds):.3f}"]
        rows.append([*cells, f"{statistics.median(ratios):.3f}", spread])
    day = datetime.datetime.now(datetime.UTC).date()
    table = "\n".join(
        [
            f"`python docs/bench/lens.py` on {day}: {name_device('cpu')}, "
            f"{threads} threads; {layers} layers, {N_TOKENS} tokens; "
            f"{len(times[first])} repeats.",
            "",
            "| | process seconds | x by hand | range |",
            "|---|---:|---:|---:|",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"Logits differ by at most {apart:.1g}.",
        ]
    )
    print(table)
    if not smoke:
        replace_section(PAGE, "lens", table)


if __name__ == "__main__":
    app()
