"""The figures of the page, each with the tables that it was drawn from."""

import math
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from eah_interp.attribution import (
    BroadcastScores,
    HeadAttribution,
    HeadPatterns,
    PictureAttribution,
)
from eah_interp.errors import UnsupportedError
from eah_interp.interventions import FoundSinks
from eah_interp.report.inspection import (
    DonorSinks,
    Explained,
    Inspection,
    list_donor_sinks,
)
from eah_interp.report.reading import PATCHED
from eah_interp.report.tables import RUNS
from eah_interp.tables import Table
from eah_interp.viz.figures import COLUMN_WIDTH
from eah_interp.viz.overlays import plot_sinks
from eah_interp.viz.page import (
    Drawing,
    embed_figure,
    embed_image,
    embed_photo,
    shrink,
)

MOST_TARGETS = 1
"""Targets of one prompt whose effects are drawn on the image: the first."""

MOST_DONORS = 4
"""Layers whose donor's sinks are drawn: the first of those that are patched."""

MOST_CELLS = 40_000
"""Scores that are listed under a figure; of more, the figure is not drawn."""


def draw_image(found: Inspection) -> Drawing:
    """Show the image, and describe what is known of it."""
    image, subject = found.subject.image, found.subject
    said = f"The image: {subject.title}, {image.width} x {image.height} pixels."
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
    prompt = found.asked[-1].question.prompt
    text = (
        f'Sink density by layer and head, in the plain model: "{prompt}". Brighter '
        "is denser; a dot marks the densest head of a layer, a frame the donor."
    )
    source = embed_figure(found.sink_map.plot(donors=found.donors))
    return Drawing(source=source, text=text, tables=(_tabulate_density(found),))


def _tabulate_density(found: Inspection) -> Table:
    """Lay out the density of every head in the plain model; donors have a star."""
    sink_map, donors = found.sink_map, found.donors
    notes = (
        f"Share of the {int(sink_map.columns[0].sum())} image columns that are vision "
        f"sinks, definition {sink_map.definition}, beta {sink_map.beta:g}, in the "
        "plain model. A star marks the donor of a patched layer."
    )
    if len(found.eah.layers) > 1:
        notes += " A later layer's donor is chosen after the patch of the earlier one."
    rows = [
        (
            f"L{layer}",
            *(
                f"{100 * value:.0f}" + ("*" if donors.get(layer) == head else "")
                for head, value in enumerate(line)
            ),
        )
        for layer, line in zip(
            sink_map.layers, sink_map.density[0].tolist(), strict=True
        )
    ]
    return Table(
        caption=f"Sink density in %: {found.asked[-1].question.prompt}",
        header=("layer", *_number_heads(sink_map.density)),
        rows=tuple(rows),
        notes=notes,
    )


def _number_heads(panel: Tensor) -> list[str]:
    return [f"H{head}" for head in range(panel.shape[-1])]


def draw_donors(found: Inspection) -> Iterator[Drawing]:
    """Draw the donors' sinks on the image, where image tokens have a place in it.

    Raises:
        UnsupportedError: If they have none.
    """
    patch = found.asked[-1].reading.patches[PATCHED]
    image = shrink(found.subject.image)
    for sinks in list_donor_sinks(patch, found.sink_map)[:MOST_DONORS]:
        figure = plot_sinks(image, found.span, columns={sinks.title: sinks.columns})
        text = (
            f"The image, and beside it its patches that are vision sinks of donor "
            f"L{sinks.layer}H{sinks.head}: bright and outlined, the rest dimmed; "
            f"{len(sinks.columns)} of {sinks.n_judged} image columns."
        )
        tables = tuple(_tabulate_sinks(found, sinks))
        yield Drawing(source=embed_photo(figure), text=text, tables=tables, wide=True)


def _tabulate_sinks(found: Inspection, sinks: DonorSinks) -> list[Table]:
    """Lay out a donor's column scores."""
    if sinks.scores is None:
        notes = "1 with a star: a vision sink; 0: none."
    else:
        unit = "Mean received attention"
        if sinks.is_share:
            unit = "Multiples of the uniform share"
        notes = f"{unit}; a star marks a vision sink: above beta = {found.eah.beta:g}."
    return [
        _tabulate_patches(
            ([_write_score(sinks, column) for column in line] for line in part.columns),
            caption=f"Donor L{sinks.layer}H{sinks.head}: score of each patch "
            f"({part.name})",
            notes=notes,
        )
        for part in found.span.parts
    ]


def _write_score(sinks: DonorSinks, column: int) -> str:
    is_sink = column in sinks.columns
    star = "*" * is_sink
    if sinks.scores is None:
        return f"{int(is_sink)}{star}"
    score = sinks.scores[column]
    return f"{score:.3f}{star}" if sinks.is_share else f"{score:.2e}{star}"


MOST_SINKS = 40
"""Sinks of either kind that are listed: the first."""


def say_kinds(found: Inspection) -> str:
    """Count the sinks of each kind in a sentence; empty where they were not found."""
    kinds = found.kinds
    if kinds is None:
        return ""
    tower, language, both = (
        int(kinds.mask(kind).sum()) for kind in ("tower", "language", "both")
    )
    said = (
        f"Of {int(kinds.columns.sum())} image columns {tower} are sinks of the vision "
        f"tower (a huge norm there), {language} of the language model (massive "
        f"activations), {both} of both"
    )
    learned = kinds.learned_frame()
    if len(learned):
        said += f"; {len(learned)} heads have learned sinks, which are no columns"
    if kinds.reason:
        said += f". Of the tower none are known: {kinds.reason}"
    return f"{said}."


def draw_kinds(found: Inspection) -> Iterator[Drawing]:
    """Draw sinks of each kind on the image, and norms along both towers."""
    kinds = found.kinds
    if kinds is None:
        return
    sinks = _tabulate_sinks_by_kind(kinds)
    listed = [sinks] if sinks.rows else []
    if listed and found.span.spatial:
        text = "Sinks of each kind on the image, filled; other patches are outlined."
        try:
            figure = kinds.plot(image=shrink(found.subject.image))
        except UnsupportedError:
            figure = None
        if figure is not None:
            wide = bool(figure.get_figwidth() > 1.2 * COLUMN_WIDTH)
            source = embed_photo(figure)
            yield Drawing(source=source, text=text, tables=tuple(listed), wide=wide)
            listed = []
    text = (
        "The norm of every image column along the vision tower, and behind the dotted "
        "line along the decoder, on a logarithmic scale; sinks in colour."
    )
    tables = (*listed, _tabulate_norms(kinds))
    yield Drawing(source=embed_figure(kinds.plot_norms()), text=text, tables=tables)


def _tabulate_sinks_by_kind(kinds: FoundSinks) -> Table:
    """List the sinks of either kind, with what decided it."""
    listed = kinds.frame().query("kind != 'none'")
    notes = f"The first {MOST_SINKS} of {len(listed)}." * (len(listed) > MOST_SINKS)
    return Table(
        caption="Sinks by kind",
        header=("column", "kind", "why", "attention from words, %", "heads, %"),
        rows=tuple(
            (
                str(row["column"]),
                row["kind"],
                row["rule"],
                _percent(row["from_words"]),
                _percent(row["share"]),
            )
            for row in listed.head(MOST_SINKS).to_dict("records")
        ),
        notes=notes,
    )


def _tabulate_norms(kinds: FoundSinks) -> Table:
    """Lay out norms along both towers: the median of all columns, and the largest."""
    own = kinds.columns[0]
    rows = [
        (f"{where} {number}", norms[own])
        for where, all_norms in (
            ("vision layer", kinds.tower_norms[0]),
            ("decoder depth", kinds.norms[0]),
        )
        for number, norms in enumerate(all_norms)
    ]
    return Table(
        caption="Norms of image columns",
        header=("where", "median", "largest"),
        rows=tuple(
            (where, f"{norms.nanmedian():.3g}", f"{norms.nan_to_num(0).max():.3g}")
            for where, norms in rows
        ),
        notes="Depth 0 is what enters the decoder. A column that is made of several of "
        "the tower's tokens has the largest of their norms.",
    )


def draw_broadcast(found: Inspection) -> Iterator[Drawing]:
    """Draw every head of the first patched layer, plain and patched."""
    if found.broadcast is None:
        return
    scores = found.broadcast.scores
    n_heads = scores.plain.scores.shape[2]
    if not 0 < 2 * int(scores.columns[0].sum()) * n_heads <= MOST_CELLS:
        return
    text = (
        f"Every head of layer {scores.layers[0]}, plain and patched: a line for each "
        "head, a cell for each image token. Purple is a vision sink, orange is none; "
        "at the right the head's sink density; a frame marks the donor."
    )
    tables = tuple(_tabulate_columns(scores))
    yield Drawing(source=embed_figure(scores.plot()), text=text, tables=tables)


def _tabulate_columns(found: BroadcastScores) -> list[Table]:
    """Lay out every head's columns in the first layer that was scored."""
    layer, judged = found.layers[0], found.columns[0]
    positions = judged.nonzero().flatten().tolist()
    tables = []
    for name, run in found.runs.items():
        ratio, sinks = run.ratio[0, 0][:, judged], run.sinks[0, 0][:, judged]
        pairs = zip(ratio.tolist(), sinks.tolist(), strict=True)
        tables.append(
            Table(
                caption=f"Layer {layer}, {name}: score / sink threshold",
                header=("head", *map(str, positions)),
                rows=tuple(
                    (f"L{layer}H{head}", *map(_write_ratio, *line))
                    for head, line in enumerate(pairs)
                ),
                notes="A column for each image token, by its position in the prompt; a "
                "star marks a vision sink.",
            )
        )
    return tables


def _write_ratio(ratio: float, is_sink: bool) -> str:  # noqa: FBT001 - used by `map`
    return "" if math.isnan(ratio) else f"{ratio:.2f}" + "*" * is_sink


def draw_attention(found: Inspection) -> Iterator[Drawing]:
    """Draw where the donor and a recipient look, if image tokens have places."""
    patterns = found.broadcast.patterns if found.broadcast else None
    if patterns is None:
        return
    try:
        figure = patterns.plot(shrink(found.subject.image))
    except UnsupportedError:
        return
    text = (
        f"Where {' and '.join(patterns.names)} look from the last position of the "
        "prompt, plain and patched, on one scale: the donor, and of the recipients the "
        "one with the fewest sinks. Vision sinks are outlined."
    )
    yield Drawing(
        source=embed_photo(figure),
        text=text,
        tables=tuple(_tabulate_attention(patterns)),
        wide=bool(figure.get_figwidth() > 1.2 * COLUMN_WIDTH),
    )


def _tabulate_attention(found: HeadPatterns) -> list[Table]:
    """Lay out where each head looks from the last position, in either run."""
    parts, tables = found.span(0).parts, []
    for name in found.names:
        for run in found.runs:
            grids = found.picture(name, run=run)
            for part, grid in zip(parts, grids, strict=True):
                caption = f"{name}, {run}, {part.name}: attention in %"
                lines = ([_percent(value) for value in line] for line in grid.tolist())
                tables.append(_tabulate_patches(lines, caption=caption))
    return tables


def _percent(weight: float) -> str:
    return "" if math.isnan(weight) else f"{100 * weight:.2f}"


def draw_logits(found: Inspection) -> Iterator[Drawing]:
    """Draw the logits of the objects that are split by heads."""
    logits = {one.object for one in found.caption.objects} if found.caption else set()
    for one in found.explained:
        labels = {target.label for target in one.heads.targets}
        if not labels <= logits:
            continue
        there = [name for name in found.subject.present if name in labels]
        text = (
            "Logits of objects where a caption is about to name one, plain and "
            "patched, the change at the right. Circles are in the image, diamonds are "
            "not."
        )
        source = embed_figure(one.heads.plot_logits(present=there))
        table = _tabulate_logits(one.heads, present=there)
        yield Drawing(source=source, text=text, tables=(table,))


def _tabulate_logits(found: HeadAttribution, *, present: Sequence[str]) -> Table:
    """Lay out the logits of objects that are split by heads."""
    listed = found.list_logits(present=present)
    return Table(
        caption="Logits that are split by heads below",
        header=("object", "there", *RUNS),
        rows=tuple(
            (
                row["object"],
                "yes" if row["present"] else "no",
                *(f"{row[name]:+.4f}" for name in RUNS),
            )
            for row in listed.to_dict("records")
        ),
    )


def draw_heads(explained: Explained) -> Drawing:
    """Draw the direct effects of every head on every target."""
    heads = explained.heads
    names = ", ".join(target.label for target in heads.targets)
    text = (
        f"Direct effect of each head on the logit of {names}: plain, patched, and the "
        "change. Purple raises the logit, orange lowers it; each line of panels has "
        "its own scale."
    )
    tables = [t for n in range(len(heads.targets)) for t in _tabulate_maps(heads, n)]
    source = embed_figure(heads.plot_targets())
    return Drawing(source=source, text=text, tables=tuple(tables), wide=True)


def _tabulate_maps(found: HeadAttribution, target: int) -> tuple[Table, ...]:
    """Lay out a target's effects of every head: plain, patched and the change."""
    return tuple(
        Table(
            caption=f"{found.targets[target].label}, {run}, in logits",
            header=("layer", *_number_heads(panel)),
            rows=tuple(
                (f"L{layer}", *map(_round, line))
                for layer, line in zip(found.layers, panel.tolist(), strict=True)
            ),
        )
        for run, panel in found.panels(target).items()
    )


def draw_patches(found: Inspection, explained: Explained) -> Iterator[Drawing]:
    """Draw on the image where heads read the first targets."""
    patches = explained.patches
    if patches is None:
        return
    image = shrink(found.subject.image)
    for number, target in enumerate(patches.targets[:MOST_TARGETS]):
        text = (
            f"From which patches all heads together read {target.label}: plain, "
            "patched, and the change, on one scale. Purple raises the logit, orange "
            "lowers it."
        )
        source = embed_photo(patches.plot(image, target=number))
        tables = tuple(_tabulate_effects(patches, number))
        yield Drawing(source=source, text=text, tables=tables, wide=True)


def _tabulate_effects(found: PictureAttribution, target: int) -> list[Table]:
    """Lay out a target's effects, all heads together: plain, patched, the change."""
    parts, tables = found.span(target).parts, []
    for run in RUNS:
        grids = found.picture(target, run=run)
        for part, grid in zip(parts, grids, strict=True):
            which = part.name if len(grids) > 1 else "patches"
            caption = f"{found.targets[target].label}, {run}, {which}, in logits"
            lines = ([_round(value) for value in line] for line in grid.tolist())
            tables.append(_tabulate_patches(lines, caption=caption))
    return tables


def _tabulate_patches(
    lines: Iterable[Iterable[str]], *, caption: str, notes: str = ""
) -> Table:
    """Lay out what is written of image tokens, rows and columns counted from 0."""
    rows = tuple((str(number), *line) for number, line in enumerate(lines))
    header = ("row", *map(str, range(len(rows[0]) - 1)))
    return Table(caption=caption, header=header, rows=rows, notes=notes)


def _round(value: float) -> str:
    """Write to three decimals; nothing where no patch is, and no minus zero."""
    return "" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"
