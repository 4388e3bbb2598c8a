"""Time exact path patching into one layer against one forward pass for every edge.

    python docs/bench/paths.py                # all parts; docs/performance.md
    python docs/bench/paths.py --only memory  # or times, agreement: one part
    python docs/bench/paths.py --smoke        # a few edges, one repeat, writes nothing

Both put heads' outputs on another image into single queries, keys and values of one
layer. The other way is given what senders change and what receivers make of it, which
it would need two more passes for: what is timed of it is one forward pass an edge, in
which one hook sets one head's query, key or value. Ways run in turn; ratios are medians
of the repeats' own. Memory is the peak of a process of its own. Agreement is that of
gradients with exact patching, on kitchens of the toy in which it sees a spoon.
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
from shaped_models import FIRST_IMAGE_POSITION, TOKENS_PER_IMAGE, Shape, build_model
from torch import Tensor, nn

import eah_interp as eah
from eah_interp.attribution import Case, approximate_paths, patch_paths
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding
from eah_interp.statistics import estimate_mean
from eah_interp.toy import draw_scene, with_companions_turned

OUT = Path(__file__).parents[1] / "performance.json"
LEAST = 5.0
"""How many times faster edges into the last layer are to be than a forward each."""
BATCHES = (1, 4, 16, 64)
"""Edges in a batch whose peak memory is measured."""
METHODS: dict[str, dict[str, Any]] = {
    "eap": {"method": "eap"},
    "eap_ig, 1 step": {"method": "eap_ig", "n_steps": 1},
    "eap_ig, 5 steps": {"method": "eap_ig", "n_steps": 5},
    "eap_ig, 20 steps": {"method": "eap_ig", "n_steps": 20},
}
N_SCENES, N_CHECKED = 8, 64
N_TOKENS = 624
SHAPE = Shape(d_model=256, d_mlp=688, vocab=1064, n_heads=16)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def ask(model: eah.LVLM, seed: int) -> Case:
    """Ask for one token after a prompt of LLaVA's length, of a random image."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (1, N_TOKENS), generator=generator)
    image = slice(FIRST_IMAGE_POSITION, FIRST_IMAGE_POSITION + TOKENS_PER_IMAGE)
    ids[ids == model.anatomy.image_token_id] = 3
    ids[:, image] = model.anatomy.image_token_id
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(seed))
    encoding = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
    }
    last = N_TOKENS - 1
    aims = [("a", 0, last, "a", [(last, 7, 1.0)])]
    return Case(Encoding(encoding), None, read_tokens(aims))


def forward_each(model: eah.LVLM, case: Case, layer: int, n_edges: int) -> None:
    """Run one forward pass for each edge, with one head's query set by a hook."""
    plain = model._module
    projection = plain.get_submodule(f"{model.anatomy.layers}.{layer}.self_attn.q_proj")
    width = model.anatomy.d_head
    for edge in range(n_edges):
        columns = slice(edge % 16 * width, (edge % 16 + 1) * width)

        def change(
            module: nn.Module, args: Any, output: Tensor, columns: slice = columns
        ) -> Tensor:
            del module, args
            output = output.clone()
            output[..., columns] *= 1.1
            return output

        handle = projection.register_forward_hook(change)
        with torch.no_grad():
            plain(**case.inputs, use_cache=False, logits_to_keep=1)
        handle.remove()


def ours(
    model: eah.LVLM, layer: int, n_edges: int, batch_size: int | None = None
) -> Callable[[], object]:
    """Patch edges from heads of the first layer into queries of a later one."""
    case, other = ask(model, 0), ask(model, 1)
    senders = [f"L0H{head}" for head in range(n_edges // SHAPE.n_heads)]
    receivers = [f"L{layer}H{head}.q" for head in range(SHAPE.n_heads)]
    return lambda: patch_paths(
        model,
        case,
        source_images=other,
        senders=senders,
        receivers=receivers,
        batch_size=batch_size,
    )


def build(layers: int) -> eah.LVLM:
    """Build the model."""
    return eah.wrap(
        build_model(SHAPE, n_layers=layers, dtype=torch.float32, device="cpu")
    )


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    layers: int = 6,
    edges: int = 96,
    threads: int = 1,
    only: Annotated[
        str, typer.Option(help="times, memory or agreement; the others are kept.")
    ] = "",
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="A few edges, one repeat.")
    ] = False,
    out: Annotated[Path, typer.Option(help="JSON file, with its page beside.")] = OUT,
    peak_of: Annotated[int, typer.Option(hidden=True)] = -1,
) -> None:
    """Time both ways into each of some layers, and write the tables."""
    torch.set_num_threads(threads)
    if peak_of >= 0:
        model = build(layers)
        run = ours(model, layers // 2, 64, batch_size=peak_of)
        if not peak_of:
            run = lambda: forward_each(model, ask(model, 0), layers // 2, 4)  # noqa: E731
        print(measure_peak(run, device="cpu"))
        return
    if only not in ("", "times", "memory", "agreement"):
        raise typer.BadParameter(f"--only {only}: expected times, memory or agreement")
    parts: dict[str, Any] = {}
    if only in ("", "times"):
        parts["times"] = describe_machine("cpu") | {
            "layers": layers,
            "edges": 16 if smoke else edges,
            "into": time_ways(
                layers, 16 if smoke else edges, 1 if smoke else repeats, smoke=smoke
            ),
        }
    if only in ("", "memory") and not smoke:
        parts["memory"] = describe_machine("cpu") | {
            "peak_bytes": {
                str(size): peak_in_child(size, threads, layers)
                for size in (0, *BATCHES)
            }
        }
    if only in ("", "agreement") and not smoke:
        parts["agreement"] = describe_machine("cpu") | {"rows": measure_agreement()}
    if smoke:
        print(parts)
        return
    table = write_tables(add_parts(out, "paths", parts))
    replace_section(out.with_suffix(".md"), "paths", table)
    print(table)
    if "times" in parts:
        reached = statistics.median(parts["times"]["into"][str(layers - 1)]["ratios"])
        if reached < LEAST:
            msg = f"edges into the last layer are {reached:.1f} x faster: expected 5"
            raise SystemExit(msg)


def time_ways(
    layers: int, n_edges: int, repeats: int, *, smoke: bool
) -> dict[str, dict[str, list[float]]]:
    """Time both ways in turn: seconds and ratios, by the receivers' layer."""
    model = build(layers)
    case = ask(model, 0)
    found = {}
    for layer in [layers - 1] if smoke else [layers - 1, layers // 2, 1]:
        run = ours(model, layer, n_edges)
        seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
        for _ in range(repeats):
            start = time.process_time()
            run()
            middle = time.process_time()
            forward_each(model, case, layer, n_edges)
            seconds["ours"].append(middle - start)
            seconds["by hand"].append(time.process_time() - middle)
        ratios = [
            slow / fast
            for slow, fast in zip(seconds["by hand"], seconds["ours"], strict=True)
        ]
        found[str(layer)] = seconds | {"ratios": ratios}
    return found


def peak_in_child(batch_size: int, threads: int, layers: int) -> int:
    """Measure the peak memory with a batch size, or by hand (0), in its own process."""
    script = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(
        [*script, "--layers", str(layers), "--peak-of", str(batch_size)],
        env={**os.environ, **ALLOCATOR},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def measure_agreement() -> list[dict[str, Any]]:
    """Compare gradients with exact patching, on scenes whose companions are turned."""
    model = eah.load()
    pairs = []
    for seed in range(N_SCENES):
        scene = draw_scene(seed, objects=["cup", "pan", "bottle"])
        pairs.append((scene, with_companions_turned(scene, "spoon", group="sea")))
    rows = []
    for name, options in METHODS.items():
        found = [
            approximate_paths(
                model,
                scene.pil(),
                "Is there a spoon in the image?",
                metric="yes_no",
                source_images=turned.pil(),
                check=N_CHECKED,
                **options,
            )
            for scene, turned in pairs
        ]
        ranks = [float(one.agreement.rank_correlation[0]) for one in found]
        rows.append(
            {
                "method": name,
                "ranks": ranks,
                "largest_errors": [
                    float(one.agreement.largest_error[0]) for one in found
                ],
                "largest_effects": [
                    float(one.agreement.largest_effect[0]) for one in found
                ],
                "remainders": [
                    abs(float(one.remainder[0])) if one.remainder is not None else None
                    for one in found
                ],
            }
        )
    return rows


def write_tables(result: dict[str, Any]) -> str:
    """Write the tables of the parts that there are, in Markdown."""
    lines: list[str] = []
    if part := result.get("times"):
        lines += [
            f"{say_machine(part)}. {part['edges']} edges into single queries:",
            "",
            "| into layer | s an edge | s of one forward | times faster | range |",
            "|---|---:|---:|---:|---:|",
        ]
        for layer, row in part["into"].items():
            each, hand = (
                statistics.median(row[name]) / part["edges"]
                for name in ("ours", "by hand")
            )
            ratios = row["ratios"]
            lines.append(
                f"| {layer} of {part['layers']} | {each:.3g} | {hand:.3g} "
                f"| {statistics.median(ratios):.2f} "
                f"| {min(ratios):.2f} to {max(ratios):.2f} |"
            )
        lines.append("")
    if part := result.get("memory"):
        lines += [
            f"{say_machine(part)}. Peak beyond the weights, of 64 edges into the "
            "middle layer:",
            "",
            "| | peak memory, MB |",
            "|---|---:|",
        ]
        for size, peak in part["peak_bytes"].items():
            name = "one forward an edge" if size == "0" else f"`batch_size={size}`"
            lines.append(f"| {name} | {peak / 1e6:.0f} |")
        lines.append("")
    if part := result.get("agreement"):
        lines += [
            f"{say_machine(part)}. Gradients beside exact patching of {N_CHECKED} "
            f"edges of {N_SCENES} scenes of the toy (a cup, a pan and a bottle, turned "
            "into boats, fish and shells; is there a spoon?). Means over scenes, with "
            "Student's interval; the remainder is what edges of the embedding leave of "
            "the change that they must sum to:",
            "",
            "| | rank correlation | largest error | largest effect | remainder |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in part["rows"]:
            left = [one for one in row["remainders"] if one is not None]
            lines.append(
                f"| {row['method']} | {estimate_mean(row['ranks']).write(2)} "
                f"| {statistics.mean(row['largest_errors']):.2g} "
                f"| {statistics.mean(row['largest_effects']):.2g} "
                f"| {f'{statistics.mean(left):.2g}' if left else ''} |"
            )
    return "\n".join(lines).strip()


if __name__ == "__main__":
    app()
