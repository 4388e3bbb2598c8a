"""One picture's result on one page of HTML, without a network or another file."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.files import save_bytes
from eah_interp.report.inspection import (
    DonorSinks,
    Explained,
    Inspection,
    list_donor_sinks,
)
from eah_interp.report.reading import PATCHED
from eah_interp.report.tables import (
    TITLES,
    list_settings,
    say_settings,
    tabulate_answers,
    tabulate_density,
    tabulate_donors,
    tabulate_heads,
    tabulate_maps,
    tabulate_next,
    tabulate_objects,
    tabulate_patches,
    tabulate_yes_no,
)
from eah_interp.tables import Table
from eah_interp.viz.figures import COLUMN_WIDTH
from eah_interp.viz.page import (
    Drawing,
    embed_figure,
    embed_image,
    embed_photo,
    render_page,
    shrink,
)

# ---- The figures of the page, each with the tables that it was drawn from.


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
    prompt = found.asked[-1].question.prompt
    figure = found.sink_map.plot(donors=found.donors)
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
    heads = explained.heads
    names = ", ".join(target.label for target in heads.targets)
    text = (
        f"Direct effect of each head on the logit of {names}: without EAH (plain), "
        "with it (patched), and the change. Purple raises the logit, orange lowers it; "
        "each line of panels has its own scale."
    )
    tables = [t for n in range(len(heads.targets)) for t in tabulate_maps(heads, n)]
    source = embed_figure(heads.plot_targets())
    return Drawing(source=source, text=text, tables=tuple(tables), wide=True)


def draw_places(found: Inspection, explained: Explained) -> Iterator[Drawing]:
    """Draw on the picture where heads read the first targets."""
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
        source = embed_photo(picture.plot(image, target=number))
        yield Drawing(source=source, text=text, tables=tuple(tables), wide=True)


def _tabulate_sinks(found: Inspection, sinks: DonorSinks) -> Iterator[Table]:
    """Lay out a donor's column scores as the patches lie in the picture."""
    if not found.span.spatial:
        raise UnsupportedError("image tokens stand for no places in the picture")
    chosen = frozenset(sinks.columns)
    for part in found.span.parts:
        rows = tuple(
            (str(row), *(_write(sinks, column, column in chosen) for column in line))
            for row, line in enumerate(part.columns)
        )
        yield Table(
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


# ---- Figures of the broadcast itself: every head's columns, and two heads' attention.


MOST_CELLS = 40_000
"""Scores that are listed under a figure; of more, the figure is not drawn."""


RUN_TITLES = {"plain": "before EAH", "patched": "after EAH"}


def draw_broadcast(found: Inspection) -> Iterator[Drawing]:
    """Draw every head of the first patched layer, before and after the broadcast."""
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
            Table(
                caption=f"Layer {layer}, {RUN_TITLES[name]}: score / sink threshold",
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
    source = embed_figure(scores.plot())
    yield Drawing(source=source, text=text, tables=tuple(tables))


def draw_attention(found: Inspection) -> Iterator[Drawing]:
    """Draw where the donor and a recipient look, if image tokens have places."""
    patterns = found.broadcast.patterns if found.broadcast else None
    if patterns is None:
        return
    try:
        figure = patterns.plot(shrink(found.subject.image))
    except UnsupportedError:
        return
    parts, tables = patterns.span(0).parts, []
    for name, head in zip(patterns.names, patterns.heads, strict=True):
        for run in patterns.runs:
            grids = patterns.picture(head, run=run)
            for part, grid in zip(parts, grids, strict=True):
                tables.append(
                    Table(
                        caption=f"{name}, {RUN_TITLES[run]}, {part.name}: "
                        "attention in %",
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
    logits = {one.object for one in found.caption.objects} if found.caption else set()
    for one in found.explained:
        labels = {target.label for target in one.heads.targets}
        if not labels <= logits:
            continue
        there = [name for name in found.subject.present if name in labels]
        table = one.heads.list_logits(present=there)
        rows = tuple(
            (
                row["object"],
                "yes" if row["present"] else "no",
                *(f"{row[name]:+.4f}" for name in ("plain", "patched", "change")),
            )
            for row in table.to_dict("records")
        )
        grid = Table(
            caption="Logits that are split by heads below",
            header=("object", "there", "without EAH", "with EAH", "change"),
            rows=rows,
        )
        text = (
            "Logits of objects where a caption is about to name one: without EAH "
            "(plain), with it (patched), the change at the right. Circles are in the "
            "picture, diamonds are not."
        )
        source = embed_figure(one.heads.plot_logits(present=there))
        yield Drawing(source=source, text=text, tables=(grid,))


def _mark(ratio: float, is_sink: bool) -> str:  # noqa: FBT001 - paired by `map`
    return "" if ratio != ratio else f"{ratio:.2f}" + ("*" if is_sink else "")


def _percent(weight: float) -> str:
    return "" if weight != weight else f"{100 * weight:.2f}"


TEMPLATE = "page.html.jinja"


FACTS = {
    "name": "model",
    "n_layers": "decoder layers",
    "n_heads": "query heads of a layer",
    "n_kv_heads": "key/value groups of a layer",
    "d_head": "width of a head",
    "attention": "attention backend",
    "weights": "weights, SHA-256",
}
"""What is known of the model, as a reader would name it."""


def write_report(found: Inspection, path: str | Path) -> Path:
    """Write a result's page: one HTML file, whole or not at all.

    Answers, donors, sinks, logits under every control, the heads that write them, and
    under each figure the table that it was drawn from.

    Args:
        found: What `inspect_image` returned.
        path: The file.

    Returns:
        The file.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
        SettingsError: If the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        msg = f"cannot write {path}: the folder {path.parent} does not exist; make it"
        raise SettingsError(msg)
    save_bytes(render(found).encode(), path)
    return path


def render(found: Inspection) -> str:
    """Lay out the page; whatever the result holds is shown as text.

    Args:
        found: What was measured.

    Returns:
        The page.
    """
    donors, note = _draw_donors(found)
    template = files("eah_interp.report").joinpath(TEMPLATE).read_text("utf-8")
    return render_page(
        template,
        found=found,
        settings_line=say_settings(found.eah),
        picture=draw_picture(found),
        answers=tabulate_answers(found),
        donors=tabulate_donors(found),
        density=draw_density(found),
        sinks=[*donors, *draw_broadcast(found), *draw_attention(found)],
        logits=list(draw_logits(found)),
        sinks_note=note,
        asked=[
            {
                "prompt": one.question.prompt,
                "yes_no": tabulate_yes_no(one) if one.is_yes_no else None,
                "next": tabulate_next(one),
            }
            for one in found.asked
        ],
        objects=tabulate_objects(found),
        explained=[
            {
                "about": one.about,
                "drawing": draw_heads(one),
                "tables": [
                    tabulate_heads(one.heads, target)
                    for target in range(len(one.heads.targets))
                ],
                "places": list(draw_places(found, one)),
            }
            for one in found.explained
        ],
        settings=list(list_settings(found.eah)),
        facts={FACTS.get(k, k): v for k, v in found.model.items()},
    )


def _draw_donors(found: Inspection) -> tuple[list[Drawing], str]:
    """Draw the donors' sinks, or say why they cannot be drawn."""
    try:
        drawn = list(draw_donors(found))
    except UnsupportedError as error:
        return [], f"The donor's sinks are not drawn on the picture: {error}."
    if drawn:
        return drawn, ""
    return [], "No head donated in a layer whose scores are known: no sinks to draw."
