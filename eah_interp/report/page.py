"""One image's result on one page of HTML, without a network or another file."""

import dataclasses
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from eah_interp.arguments import by_name, check_path
from eah_interp.attribution import Circuits
from eah_interp.errors import SettingsError, UnsupportedError, show_value
from eah_interp.files import name_file, save_bytes
from eah_interp.indices import to_list
from eah_interp.report.circuits import draw_circuit, say_circuit
from eah_interp.report.figures import (
    draw_attention,
    draw_broadcast,
    draw_density,
    draw_donors,
    draw_heads,
    draw_image,
    draw_kinds,
    draw_logits,
    draw_patches,
    say_kinds,
)
from eah_interp.report.inspection import Inspection
from eah_interp.report.tables import (
    say_settings,
    tabulate_answers,
    tabulate_donors,
    tabulate_facts,
    tabulate_heads,
    tabulate_next,
    tabulate_objects,
    tabulate_settings,
    tabulate_yes_no,
)
from eah_interp.viz.page import Drawing, render_page

TEMPLATE = "page.html.jinja"


@by_name
def write_report(
    found: Inspection,
    path: str | Path,
    *,
    circuits: Circuits | Sequence[Circuits] = (),
) -> Path:
    """Write a result's page: one HTML file, whole or not at all.

    Answers, donors, sinks, logits under every control, the heads that write them,
    circuits where there are some, and under each figure the table that it was drawn
    from.

    Args:
        found: What `inspect_image` returned.
        path: The file.
        circuits: What `find_circuits` found for this image: one, or several.

    Returns:
        The file.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
        SettingsError: If the file cannot be written, or `circuits` are none.
    """
    listed = [circuits] if isinstance(circuits, Circuits) else to_list(circuits)
    if listed is None or not all(isinstance(one, Circuits) for one in listed):
        msg = f"circuits: expected what find_circuits found, got {show_value(circuits)}"
        raise SettingsError(msg)
    path = check_path("path", path, error=SettingsError)
    if not path.parent.is_dir():
        msg = f"cannot write {path}: the folder {path.parent} does not exist; make it"
        raise SettingsError(msg)
    save_bytes(render(found, circuits=listed).encode(), path)
    return path


def render(found: Inspection, *, circuits: Sequence[Circuits] = ()) -> str:
    """Lay out the page; whatever the result holds is shown as text.

    Args:
        found: What was measured.
        circuits: Circuits that were found for this image.

    Returns:
        The page.
    """
    found = _without_folders(found)
    donors, note = _draw_donors(found)
    template = files("eah_interp.report").joinpath(TEMPLATE).read_text("utf-8")
    return render_page(
        template,
        found=found,
        settings_line=say_settings(found.eah),
        image=draw_image(found),
        answers=tabulate_answers(found),
        donors=tabulate_donors(found),
        density=draw_density(found),
        sinks=[*donors, *draw_broadcast(found), *draw_attention(found)],
        logits=list(draw_logits(found)),
        sinks_note=note,
        kinds_said=say_kinds(found),
        kinds=list(draw_kinds(found)),
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
                "places": list(draw_patches(found, one)),
            }
            for one in found.explained
        ],
        circuits=[
            {"about": say_circuit(one), "drawings": draw_circuit(one)}
            for one in circuits
        ],
        settings=tabulate_settings(found.eah),
        facts=tabulate_facts(found),
    )


def _without_folders(found: Inspection) -> Inspection:
    """Return a result that names files without the folders above them.

    The page may be mailed; the result, and its JSON, keep paths as they were given.
    """
    paths = [found.subject.title, str(found.model["name"])]

    def shorten(text: str) -> str:
        for path in sorted(paths, key=len, reverse=True):
            text = text.replace(path, name_file(path))
        return text

    words = shlex.split(found.command)
    return dataclasses.replace(
        found,
        model={**found.model, "name": name_file(str(found.model["name"]))},
        subject=dataclasses.replace(
            found.subject, title=name_file(found.subject.title)
        ),
        command=shlex.join(map(name_file, words)),
        remarks=tuple(map(shorten, found.remarks)),
    )


def _draw_donors(found: Inspection) -> tuple[list[Drawing], str]:
    """Draw the donors' sinks, or write why they cannot be drawn."""
    try:
        drawn = list(draw_donors(found))
    except UnsupportedError as error:
        return [], f"The donor's sinks are not drawn on the image: {error}."
    if drawn:
        return drawn, ""
    return [], "No head donated in a layer whose scores are known: no sinks to draw."
