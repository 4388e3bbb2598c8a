"""Circuits on the page: as a graph, and what is left of a behaviour by their size."""

import torch

from eah_interp.attribution import Circuits
from eah_interp.attribution.results import name_targets
from eah_interp.shown_results import count
from eah_interp.tables import Table
from eah_interp.viz.page import Drawing, embed_figure

MOST_EDGES = 40
"""Edges of a circuit that are drawn and listed: the foremost."""


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
