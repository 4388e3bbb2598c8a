"""Circuits of one image's answer: found beside another image, and laid out."""

from typing import Any

import torch
from PIL import Image

from eah_interp.attribution import Circuits, approximate_paths, find_circuits
from eah_interp.attribution.results import name_targets
from eah_interp.lvlm import LVLM
from eah_interp.report.reading import Progress
from eah_interp.shown_results import count
from eah_interp.tables import Table
from eah_interp.viz.page import Drawing, embed_figure

MOST_EDGES = 40
"""Edges of a circuit that are drawn and listed: the foremost."""

TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes that are measured, in units of the circuit's; and that of every edge."""

N_RANDOM = 2
"""Draws of as many random edges, for each size."""


def count_runs(n_edges: int) -> int:
    """Say how many circuits are run at most, whatever the size of the model.

    With every edge and with none; of each size alone, left out, and at random; and
    the circuit without each of its edges.

    Example:
        >>> count_runs(20)
        46
    """
    return 2 + (2 + N_RANDOM) * (len(TIMES) + 1) + n_edges


def trace_answer(
    model: LVLM,
    image: Image.Image,
    prompt: str,
    *,
    other: Image.Image,
    n_edges: int,
    bar: Progress | None = None,
) -> Circuits:
    """Find the edges by which the answer to a question differs between two images.

    Edges are ordered by `approximate_paths` (one forward and one backward pass).

    Args:
        model: The model.
        image: The image.
        prompt: A question that is answered by yes or no.
        other: What all edges but the circuit's carry: another image, whose tokens
            stand where those of the first do.
        n_edges: How many edges, each of which is left out by itself too.
        bar: Told of each step.

    Returns:
        The circuit of so many edges, and smaller and larger ones.

    Raises:
        InputError: If the images' tokens do not correspond, or both have one answer.
        UnsupportedError: If the model cannot be split into edges.
    """
    pair: dict[str, Any] = {
        "images": image,
        "prompts": prompt,
        "metric": "yes_no",
        "source_images": other,
    }
    if bar is not None:
        bar.step("gradients of every edge")
    edges = approximate_paths(model, **pair)
    whole = len(edges.senders)
    n_edges = min(n_edges, whole)
    sizes = {max(1, round(n_edges * times)) for times in TIMES} | {whole}
    shares = [size / whole for size in sorted(sizes) if size <= whole]
    if bar is not None:
        bar.step(f"{count_runs(n_edges)} runs with some edges")
    return find_circuits(
        model,
        edges=edges,
        shares=shares,
        chosen=n_edges / whole,
        n_random=N_RANDOM,
        **pair,
    )


def tell_circuit(found: Circuits) -> str:
    """Write in a sentence how much of an answer a circuit explains, and by what.

    Args:
        found: What `trace_answer` returned.
    """
    size, whole = found.sizes[found.chosen], len(found.senders)
    share = float(found.faithfulness[found.chosen])
    by_chance = float(found.share_of(found.random[:, :, found.chosen].T).mean())
    foremost = found.list_edges().head(3)["name"].tolist()
    return (
        f"Circuit: with {size} of {whole:,} edges the answer keeps {share:.0%} of what "
        f"the other image changes in it ({by_chance:.0%} with as many random ones); "
        f"foremost: {', '.join(foremost)}."
    )


def say_circuit(found: Circuits) -> str:
    """Write in a sentence what a circuit was found for."""
    return (
        f"Read: {found.metric}, {name_targets(found.targets)}. All edges that are not "
        f"kept carry another run: {found.source}."
    )


def draw_circuit(found: Circuits) -> tuple[Drawing, Drawing]:
    """Draw the circuit of the chosen size as a graph, and what every size explains."""
    size = min(found.sizes[found.chosen], MOST_EDGES)
    graph = Drawing(
        source=embed_figure(found.plot(size=size)),
        text=f"The {count(size, 'foremost edge')} of {len(found.senders)}, the image "
        "below and the logit above. Colours tell by which input an edge is read; the "
        "wider, the larger its score; dashed where it is negative.",
        tables=(_tabulate_edges(found, size),),
    )
    shares = Drawing(
        source=embed_figure(found.plot_faithfulness()),
        text="The share of the behaviour with a circuit's edges alone, without them, "
        "and with as many random edges: 0 is the other run, 1 the run as it is.",
        tables=(_tabulate_sizes(found),),
    )
    return graph, shares


def _tabulate_edges(found: Circuits, size: int) -> Table:
    return Table(
        caption="Edges of the circuit",
        header=("edge", "read as", "score", "lost without"),
        rows=tuple(
            (
                row["name"],
                row["input"],
                f"{row['score']:+.4f}",
                f"{row['minimality']:+.3f}",
            )
            for row in found.list_edges().head(size).to_dict("records")
        ),
        notes="Score: the mean effect over targets by which edges were ordered, in "
        "units of what is read. Lost without: the share of the behaviour that the "
        "circuit loses without that edge.",
    )


def _tabulate_sizes(found: Circuits) -> Table:
    columns: dict[str, torch.Tensor] = {
        "kept": found.faithfulness,
        "left out": found.completeness,
    }
    notes = f"CPR {found.cpr:.3f}, CMD {found.cmd:.3f}"
    if len(found.random):
        drawn = [found.share_of(one) for one in found.random]
        columns["random"] = torch.stack(drawn).mean(0)
        notes += (
            f"; of random edges {float(found.random_cpr.mean()):.3f} and "
            f"{float(found.random_cmd.mean()):.3f}"
        )
    return Table(
        caption="Share of the behaviour by size",
        header=("edges", "share of all", *columns),
        rows=tuple(
            (
                str(size),
                f"{share:.2%}",
                *(f"{values[i]:.3f}" for values in columns.values()),
            )
            for i, (size, share) in enumerate(
                zip(found.sizes, found.shares, strict=True)
            )
        ),
        notes=f"{notes}.",
    )
