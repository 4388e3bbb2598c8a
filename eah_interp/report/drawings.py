"""The figures of the page, each with the tables that it was drawn from."""

from collections.abc import Iterator

from eah_interp.errors import UnsupportedError
from eah_interp.report.donors import DonorSinks, list_donor_sinks
from eah_interp.report.grids import Grid
from eah_interp.report.head_tables import (
    TITLES,
    tabulate_maps,
    tabulate_patches,
)
from eah_interp.report.inspection import Explained, Inspection
from eah_interp.report.reading import PATCHED
from eah_interp.report.tables import tabulate_density
from eah_interp.viz.page import Drawing, embed_figure, embed_image, embed_photo, shrink

MOST_PICTURES = 1
"""Targets of one prompt whose effects are drawn on the picture: the first."""


MOST_DONORS = 4
"""Layers whose donor's sinks are drawn: the first of those that are patched."""


def draw_picture(found: Inspection) -> Drawing:
    """Show the picture, and say in words what is known of it."""
    image, subject = found.subject.image, found.subject
    said = f"The picture: {subject.title}, {image.width} x {image.height} pixels."
    if subject.present:
        said += f" In it: {', '.join(subject.present)}."
    if found.span.spatial:
        rows, columns = found.span.grid
        said += f" The model sees it as {rows} x {columns} patches"
        more = len(found.span.parts) - 1
        said += f", and {more} more crops." if more else "."
    return Drawing(source=embed_image(image), text=said)


def draw_density(found: Inspection) -> Drawing:
    """Draw the sink density of every head."""
    from eah_interp.viz import plot_sink_map

    prompt = found.asked[-1].question.prompt
    figure = plot_sink_map(found.sink_map, donors=found.donors)
    text = (
        f'Sink density by layer and head, in the unpatched model: "{prompt}". Brighter '
        "is denser; a dot marks the densest head of a layer, a frame the donor."
    )
    return Drawing(
        source=embed_figure(figure), text=text, tables=(tabulate_density(found),)
    )


def draw_donors(found: Inspection) -> Iterator[Drawing]:
    """Draw the donors' sinks on the picture, where image tokens have a place in it.

    Raises:
        UnsupportedError: If they have none.
    """
    from eah_interp.viz import plot_sinks

    patch = found.asked[-1].reading.patches[PATCHED]
    image = shrink(found.subject.image)
    for sinks in list_donor_sinks(patch, found.sink_map)[:MOST_DONORS]:
        figure = plot_sinks(image, found.span, columns={sinks.title: sinks.columns})
        text = (
            f"The picture, and beside it its patches that are vision sinks of donor "
            f"L{sinks.layer}H{sinks.head}: bright and outlined, the rest dimmed; "
            f"{len(sinks.columns)} of {sinks.n_judged} image columns."
        )
        tables = tuple(_tabulate_sinks(found, sinks))
        yield Drawing(source=embed_photo(figure), text=text, tables=tables, wide=True)


def draw_heads(explained: Explained) -> Drawing:
    """Draw the direct effects of every head on every target."""
    from eah_interp.viz import plot_targets

    heads = explained.heads
    names = ", ".join(target.label for target in heads.targets)
    text = (
        f"Direct effect of each head on the logit of {names}: without EAH (plain), "
        "with it (patched), and the change. Purple raises the logit, orange lowers it; "
        "each line of panels has its own scale."
    )
    tables = [t for n in range(len(heads.targets)) for t in tabulate_maps(heads, n)]
    source = embed_figure(plot_targets(heads))
    return Drawing(source=source, text=text, tables=tuple(tables), wide=True)


def draw_places(found: Inspection, explained: Explained) -> Iterator[Drawing]:
    """Draw on the picture where heads read the first targets."""
    from eah_interp.viz import plot_picture

    picture = explained.picture
    if picture is None:
        return
    image = shrink(found.subject.image)
    for number, target in enumerate(picture.targets[:MOST_PICTURES]):
        text = (
            f"From which patches all heads together read {target.label}: without EAH "
            "(plain), with it (patched), and the change, on one scale. Purple raises "
            "the logit, orange lowers it."
        )
        parts, tables = picture.span(number).parts, []
        for run, title in TITLES.items():
            grids = picture.picture(number, run=run)
            for part, grid in zip(parts, grids, strict=True):
                name = part.name if len(grids) > 1 else "patches"
                caption = f"{target.label}, {title}, {name}, in logits"
                tables.append(tabulate_patches(grid, caption=caption))
        source = embed_photo(plot_picture(picture, image, target=number))
        yield Drawing(source=source, text=text, tables=tuple(tables), wide=True)


def _tabulate_sinks(found: Inspection, sinks: DonorSinks) -> Iterator[Grid]:
    """Lay out a donor's column scores as the patches lie in the picture."""
    if not found.span.spatial:
        raise UnsupportedError("image tokens stand for no places in the picture")
    chosen = frozenset(sinks.columns)
    for part in found.span.parts:
        rows = tuple(
            (str(row), *(_write(sinks, column, column in chosen) for column in line))
            for row, line in enumerate(part.columns)
        )
        yield Grid(
            caption=f"Donor L{sinks.layer}H{sinks.head}: score of each "
            f"patch ({part.name})",
            header=("row", *map(str, range(len(part.columns[0])))),
            rows=rows,
            notes=_say_scores(found, sinks),
        )


def _say_scores(found: Inspection, sinks: DonorSinks) -> str:
    if sinks.scores is None:
        return "1 with a star: a vision sink; 0: none."
    unit = "Multiples of the uniform share"
    if not sinks.is_share:
        unit = "Mean received attention"
    return f"{unit}; a star marks a vision sink: above beta = {found.eah.beta:g}."


def _write(sinks: DonorSinks, column: int, is_sink: bool) -> str:  # noqa: FBT001
    star = "*" if is_sink else ""
    if sinks.scores is None:
        return f"{int(is_sink)}{star}"
    score = sinks.scores[column]
    return f"{score:.3f}{star}" if sinks.is_share else f"{score:.2e}{star}"
