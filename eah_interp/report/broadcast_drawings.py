"""Figures of the broadcast itself: every head's columns, and two heads' attention."""

from collections.abc import Iterator

from eah_interp.errors import UnsupportedError
from eah_interp.report.grids import Grid
from eah_interp.report.inspection import Inspection
from eah_interp.viz.figures import COLUMN_WIDTH
from eah_interp.viz.page import Drawing, embed_figure, embed_photo, shrink

MOST_CELLS = 40_000
"""Scores that are listed under a figure; of more, the figure is not drawn."""

TITLES = {"plain": "before EAH", "patched": "after EAH"}


def draw_broadcast(found: Inspection) -> Iterator[Drawing]:
    """Draw every head of the first patched layer, before and after the broadcast."""
    from eah_interp.viz import plot_donors

    if found.broadcast is None:
        return
    scores = found.broadcast.scores
    judged = scores.columns[0]
    n_cells = 2 * int(judged.sum()) * scores.plain.scores.shape[2]
    if not 0 < n_cells <= MOST_CELLS:
        return
    layer = scores.layers[0]
    positions = judged.nonzero().flatten().tolist()
    tables = []
    for name, run in scores.runs.items():
        ratio, sinks = run.ratio[0, 0][:, judged], run.sinks[0, 0][:, judged]
        tables.append(
            Grid(
                caption=f"Layer {layer}, {TITLES[name]}: score / sink threshold",
                header=("head", *map(str, positions)),
                rows=tuple(
                    (f"L{layer}H{head}", *map(_mark, *line))
                    for head, line in enumerate(
                        zip(ratio.tolist(), sinks.tolist(), strict=True)
                    )
                ),
                notes="A column for each image token, by its position in the prompt; a "
                "star marks a vision sink.",
            )
        )
    text = (
        f"Every head of layer {layer} before and after the broadcast: a line for each "
        "head, a cell for each image token. Purple is a vision sink, orange is none; "
        "at the right the head's sink density; a frame marks the donor."
    )
    source = embed_figure(plot_donors(scores))
    yield Drawing(source=source, text=text, tables=tuple(tables))


def draw_attention(found: Inspection) -> Iterator[Drawing]:
    """Draw where the donor and a recipient look, if image tokens have places."""
    from eah_interp.viz import plot_attention

    patterns = found.broadcast.patterns if found.broadcast else None
    if patterns is None:
        return
    try:
        figure = plot_attention(patterns, shrink(found.subject.image))
    except UnsupportedError:
        return
    parts, tables = patterns.span(0).parts, []
    for name, head in zip(patterns.names, patterns.heads, strict=True):
        for run in patterns.runs:
            grids = patterns.picture(head, run=run)
            for part, grid in zip(parts, grids, strict=True):
                tables.append(
                    Grid(
                        caption=f"{name}, {TITLES[run]}, {part.name}: attention in %",
                        header=("row", *map(str, range(grid.shape[1]))),
                        rows=tuple(
                            (str(row), *map(_percent, line))
                            for row, line in enumerate(grid.tolist())
                        ),
                    )
                )
    text = (
        f"Where {' and '.join(patterns.names)} look from the last position of the "
        "prompt, before EAH (plain) and after (patched), on one scale: the donor, and "
        "of the recipients the one with the fewest sinks. Vision sinks are outlined."
    )
    wide = bool(figure.get_figwidth() > 1.2 * COLUMN_WIDTH)
    source = embed_photo(figure)
    yield Drawing(source=source, text=text, tables=tuple(tables), wide=wide)


def draw_logits(found: Inspection) -> Iterator[Drawing]:
    """Draw the logits of the objects that are split by heads."""
    from eah_interp.viz import list_logits, plot_logits

    logits = {one.object for one in found.caption.objects} if found.caption else set()
    for one in found.explained:
        labels = {target.label for target in one.heads.targets}
        if not labels <= logits:
            continue
        there = [name for name in found.subject.present if name in labels]
        table = list_logits(one.heads, present=there)
        rows = tuple(
            (
                row["object"],
                "yes" if row["present"] else "no",
                *(f"{row[name]:+.4f}" for name in ("plain", "patched", "change")),
            )
            for row in table.to_dict("records")
        )
        grid = Grid(
            caption="Logits that are split by heads below",
            header=("object", "there", "without EAH", "with EAH", "change"),
            rows=rows,
        )
        text = (
            "Logits of objects where a caption is about to name one: without EAH "
            "(plain), with it (patched), the change at the right. Circles are in the "
            "picture, diamonds are not."
        )
        source = embed_figure(plot_logits(one.heads, present=there))
        yield Drawing(source=source, text=text, tables=(grid,))


def _mark(ratio: float, is_sink: bool) -> str:  # noqa: FBT001 - paired by `map`
    return "" if ratio != ratio else f"{ratio:.2f}" + ("*" if is_sink else "")


def _percent(weight: float) -> str:
    return "" if weight != weight else f"{100 * weight:.2f}"
