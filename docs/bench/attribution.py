"""Time patching and direct attribution of every head against the same by hand.

    python docs/bench/attribution.py            # LLaVA's length; docs/performance.md
    python docs/bench/attribution.py --only memory
    python docs/bench/attribution.py --only times --repeats 1 --add    # one turn more
    python docs/bench/attribution.py --smoke    # one repeat on a narrow model

By hand, in plain transformers: patching is one forward with a hook for each head;
direct attribution is one forward whose hooks keep the last token's head outputs, which
go through the output projections and the final norm with its scale frozen. Ways run in
turn, and ratios are medians of the turns' own, in process time. What all say is
compared too. docs/performance.md says what is measured.
"""

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
from bench_report import add_parts, replace_section, say_machine
from peak_memory import ALLOCATOR, measure_peak
from prefill import describe_machine
from shaped_models import Shape, build_inputs, build_model, twin
from torch import Tensor, nn

import eah_interp as eah
from eah_interp.attribution import Case, attribute_heads
from eah_interp.attribution.patching import patch_heads
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding
from eah_interp.shown_results import count
from eah_interp.testing import tiny_processor

HERE = Path(__file__).parent
OUT = HERE.parent / "performance.json"
N_TOKENS = 624
TOKEN = 1234
MOST_APART = 1e-3
"""Of effects, in units of the largest."""
SHAPE = Shape(d_model=1024, d_mlp=2752, n_heads=16)
NARROW = Shape(d_model=64, d_mlp=128, vocab=2000, n_heads=4)

HAND = "one forward a head, by hand"
ALL = "`patch_heads`"
LAST_HAND = "one forward a head, by hand, last position"
LAST = '`patch_heads`, `positions="last"`'
DIRECT_HAND = "direct effects, by hand"
DIRECT = "`attribute_heads`"
FORWARD = "one forward"
WAYS = (ALL, HAND, LAST, LAST_HAND, DIRECT, DIRECT_HAND, FORWARD)
SHORT_TURNS = 5
PAIRS = {ALL: HAND, LAST: LAST_HAND, DIRECT: DIRECT_HAND}
"""What is measured, and against what."""
LEAST = {ALL: 2.2, LAST: 8.0, DIRECT: 1 / 1.06}
"""How many times faster each is to be."""

Way = Callable[[], Tensor]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ByHand:
    """The same in plain transformers, in as many forwards as it takes."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], source: dict) -> None:
        self.model, self.inputs, self.source = model, inputs, source
        self.decoder = model.get_decoder()
        self.projections = [la.self_attn.o_proj for la in self.decoder.layers]
        self.n_heads = model.config.text_config.num_attention_heads

    @torch.no_grad()
    def read(self, inputs: dict[str, Tensor]) -> Tensor:
        """Read one token's logit at the last position."""
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[
            0, -1, TOKEN
        ]

    def record(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Keep what the output projections are given."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor]) -> None:
            del module
            kept.append(args[0])

        handles = [p.register_forward_pre_hook(keep) for p in self.projections]
        value = self.read(inputs)
        for handle in handles:
            handle.remove()
        return kept, value

    def patch(self, rows: slice, *, most: int | None = None) -> Tensor:
        """Put each head of the source into the run, one forward each.

        Args:
            rows: At which positions.
            most: The first so many heads of each layer; all when None.
        """
        given, _ = self.record(self.source)
        value = self.read(self.inputs)
        effects = []
        for layer, projection in enumerate(self.projections):
            for head in range(most or self.n_heads):
                columns = heads_columns(given[layer], head, self.n_heads)

                def replace(
                    module: nn.Module,
                    args: tuple[Tensor],
                    new: Tensor = given[layer],
                    columns: slice = columns,
                ) -> tuple[Tensor]:
                    del module
                    z = args[0].clone()
                    z[:, rows, columns] = new[:, rows, columns]
                    return (z,)

                handle = projection.register_forward_pre_hook(replace)
                effects.append(self.read(self.inputs) - value)
                handle.remove()
        return torch.stack(effects)[None]

    @torch.no_grad()
    def attribute(self) -> Tensor:
        """Give every head's direct effect on the logit, the final norm frozen."""
        kept: list[Tensor] = []
        streams: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor]) -> None:
            del module
            kept.append(args[0][0, -1])

        def enter(module: nn.Module, args: tuple[Tensor]) -> None:
            del module
            streams.append(args[0][0, -1])

        handles = [p.register_forward_pre_hook(keep) for p in self.projections]
        handles.append(self.decoder.norm.register_forward_pre_hook(enter))
        self.read(self.inputs)
        for handle in handles:
            handle.remove()
        norm = self.decoder.norm
        scale = (streams[0].square().mean() + norm.variance_epsilon).rsqrt()
        slope = self.model.lm_head.weight[TOKEN] * norm.weight * scale
        effects = []
        for z, projection in zip(kept, self.projections, strict=True):
            pulled = slope @ projection.weight
            effects.append((z * pulled).view(self.n_heads, -1).sum(-1))
        return torch.cat(effects)[None]


def heads_columns(given: Tensor, head: int, n_heads: int) -> slice:
    """Find a head's part of what an output projection is given."""
    width = given.shape[-1] // n_heads
    return slice(head * width, (head + 1) * width)


def make_ways(
    shape: Shape, n_layers: int, *, by_hand: int | None = None
) -> dict[str, Way]:
    """Make every way; each gives `[target head]` effects of all heads.

    Args:
        shape: Of the model.
        n_layers: How many layers it has.
        by_hand: How many heads of each layer are patched by hand; all when None. One
            after the other they need the memory of one.
    """
    built = build_model(shape, n_layers=n_layers, dtype=torch.float32, device="cpu")
    plain, model = twin(built), eah.wrap(twin(built), tiny_processor("llava"))
    inputs = build_inputs(built, batch=1, n_tokens=N_TOKENS)
    noise = torch.Generator().manual_seed(1)
    pixels = torch.randn(inputs["pixel_values"].shape, generator=noise)
    source = inputs | {"pixel_values": pixels}
    aim = ("word", 0, N_TOKENS - 1, "word", [(N_TOKENS - 1, TOKEN, 1.0)])
    case, other = (
        Case(Encoding(each), None, read_tokens([aim])) for each in (inputs, source)
    )
    hand = ByHand(plain, inputs, source)

    def ours(positions: str | None) -> Tensor:
        options = {"source": "plain", "source_images": other, "positions": positions}
        return patch_heads(model, case, **options).effects

    return {
        ALL: lambda: ours(None),
        HAND: lambda: hand.patch(slice(None), most=by_hand),
        LAST: lambda: ours("last"),
        LAST_HAND: lambda: hand.patch(slice(-1, None), most=by_hand),
        DIRECT: lambda: attribute_heads(model, case).plain.heads.flatten(1),
        DIRECT_HAND: hand.attribute,
        FORWARD: lambda: hand.read(inputs)[None, None],
    }


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    only: Annotated[
        str, typer.Option(help="times or memory; the table has all that is known.")
    ] = "",
    add: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--add", help="Add turns to those that are recorded.")
    ] = False,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="One repeat on a narrow model.")
    ] = False,
    out: Annotated[Path, typer.Option(help="JSON file, with its page beside.")] = OUT,
    peak_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time all ways in turn, compare their numbers, and write the table."""
    torch.set_num_threads(threads)
    shape = NARROW if smoke else SHAPE
    if peak_of:
        ways = make_ways(shape, layers, by_hand=1)
        print(measure_peak(ways[peak_of], device="cpu"))
        return
    if only not in ("", "times", "memory"):
        raise typer.BadParameter(f"--only {only}: expected times or memory")
    parts: dict[str, Any] = {}
    if only != "memory":
        before = add_parts(out, "attribution", {}).get("times", {}) if add else {}
        ways = make_ways(shape, layers)
        parts["times"] = time_ways(ways, 1 if smoke else repeats, before)
        for name, ratio in find_ratios(parts["times"]["seconds"]).items():
            print(f"{name}: {ratio:.2f} x faster than {PAIRS[name]}")
    if only != "times" and not (smoke and out == OUT):
        narrow = ["--smoke"] if smoke else []
        parts["memory"] = describe_machine("cpu") | {
            "peak_bytes": {
                name: peak_in_child(name, threads, narrow) for name in (*WAYS,)
            }
        }
    if smoke and out == OUT:
        return
    result = add_parts(out, "attribution", parts)
    table = write_table(result, n_layers=layers, n_heads=shape.n_heads)
    replace_section(out.with_suffix(".md"), "attribution", table)
    print(table)
    if smoke or "times" not in parts:
        return
    ratios = find_ratios(parts["times"]["seconds"])
    missed = [name for name, ratio in ratios.items() if ratio < LEAST[name]]
    if missed:
        wanted = ", ".join(f"{name} {LEAST[name]:.2f} x" for name in missed)
        raise SystemExit(f"slower than expected: {wanted}")


def time_ways(
    ways: dict[str, Way], repeats: int, before: dict[str, Any]
) -> dict[str, Any]:
    """Time all ways in turn, and compare what they found.

    Args:
        ways: The ways.
        repeats: How many turns.
        before: What earlier turns gave; theirs are kept.
    """
    record = describe_machine("cpu")
    times: dict[str, list[float]] = before.get("seconds") or {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    long = (ALL, HAND, LAST, LAST_HAND)
    # Short ways are noisy, and take no time: several turns of them for a long one.
    turn = [*long, *([name for name in ways if name not in long] * SHORT_TURNS)]
    for name in turn * repeats:
        start = time.process_time()
        found[name] = ways[name]()
        times[name].append(time.process_time() - start)
    apart = float(before.get("apart", 0.0))
    for name, hand in PAIRS.items():
        size = float(found[hand].abs().max())
        off = float((found[name] - found[hand]).abs().max()) / size
        if not off <= MOST_APART:
            msg = f"{name} is {off:.2g} off: expected at most {MOST_APART:g}"
            raise SystemExit(msg)
        apart = max(apart, off)
    return record | {"seconds": times, "apart": apart}


def find_ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Say how many times faster each way is than by hand, by the median turn."""
    return {
        name: statistics.median(
            slow / fast for slow, fast in zip(times[hand], times[name], strict=True)
        )
        for name, hand in PAIRS.items()
    }


def peak_in_child(name: str, threads: int, options: list[str]) -> int:
    """Measure one way's peak memory in a process of its own."""
    script = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(
        [*script, *options, "--peak-of", name],
        env={**os.environ, **ALLOCATOR},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def write_table(result: dict[str, Any], *, n_layers: int, n_heads: int) -> str:
    """Write the table of all ways in Markdown, of the parts that there are."""
    times = result.get("times", {}).get("seconds", {})
    peaks = result.get("memory", {}).get("peak_bytes", {})
    ratios = find_ratios(times) if times else {}
    said = dict.fromkeys(say_machine(part) for part in result.values())
    turns = f"; {count(len(times[HAND]), 'turn')}" if times else ""
    lines = [
        f"{'; '.join(said)}. {n_layers} layers of {n_heads} heads, {N_TOKENS} "
        f"tokens{turns}.",
        "",
        "| | process seconds | times faster than by hand | peak memory, MB |",
        "|---|---:|---:|---:|",
    ]
    for name in WAYS:
        seconds = f"{statistics.median(times[name]):.3g}" if times else ""
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        peak = f"{peaks[name] / 1e6:.0f}" if peaks else ""
        lines.append(f"| {name} | {seconds} | {ratio} | {peak} |")
    if times:
        apart = result["times"]["apart"]
        lines += ["", f"Effects here and by hand differ by at most {apart:.1g} of the "
                  "largest."]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    app()
