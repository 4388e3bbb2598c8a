"""What the demo writes: its record, its figures and its page."""

import dataclasses
from pathlib import Path
from typing import Any

from eah_interp.cli.console import save_figure, write_json
from eah_interp.errors import UnsupportedError
from eah_interp.files import save_bytes
from eah_interp.interventions import SinkMap
from eah_interp.report import Inspection, write_report
from eah_interp.report.donors import list_donor_sinks, list_donors
from eah_interp.report.inspection import Asked
from eah_interp.report.reading import PATCHED


def record_inspection(found: Inspection, *, command: str) -> dict[str, Any]:
    """Write what was measured, but for heads, as JSON can hold it.

    Args:
        found: What was measured.
        command: The command that measured it.
    """
    subject = found.subject
    return {
        "command": command,
        "versions": dict(found.versions),
        "model": dict(found.model),
        "settings": found.eah.to_dict(),
        "picture": {
            "title": subject.title,
            "present": list(subject.present),
            "absent": list(subject.absent),
        },
        "questions": [_record_question(one) for one in found.asked],
        "caption": dataclasses.asdict(found.caption) if found.caption else None,
        "sinks": _record_sinks(found.sink_map, found.asked[-1].question.prompt),
        "verdict": list(found.verdict),
        "not_measured": list(found.remarks),
    }


def _record_question(one: Asked) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one.question),
        "position": one.reading.position,
        "answers": dict(one.answers),
        "yes": dict(one.yes),
        "no": dict(one.no),
        "yes_minus_no": one.margins,
        "donors": {
            name: list_donors(patch) for name, patch in one.reading.patches.items()
        },
    }


def _record_sinks(sink_map: SinkMap, prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "definition": sink_map.definition,
        "beta": sink_map.beta,
        "n_columns": int(sink_map.columns[0].sum()),
        "layers": list(sink_map.layers),
        "density": sink_map.density[0].tolist(),
    }


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        files: The files.
        note: Why the picture is not among them; empty where it is.
    """

    files: tuple[Path, ...]
    note: str


def save_demo(found: Inspection, folder: Path) -> Saved:
    """Write result.json, report.html, sinks.png and picture.png into a folder.

    The picture is left out, with a note, where image tokens have no known place.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
        SettingsError: If the folder cannot be written to.
    """
    from eah_interp.viz import plot_sink_map, plot_sinks

    names = ("report.html", "result.json", "sinks.png", "picture.png")
    page, result, sinks, picture = (folder / name for name in names)
    save_bytes(
        (write_json(record_inspection(found, command="demo")) + "\n").encode(), result
    )
    write_report(found, page)
    save_figure(plot_sink_map(found.sink_map, donors=found.donors), sinks)
    patch = found.asked[-1].reading.patches[PATCHED]
    columns = {d.title: d.columns for d in list_donor_sinks(patch, found.sink_map)}
    try:
        drawn = plot_sinks(found.subject.image, found.span, columns=columns)
    except UnsupportedError as error:
        picture.unlink(missing_ok=True)
        note = f"{picture.name} is not drawn: {error}"
        return Saved((page, result, sinks), note)
    save_figure(drawn, picture)
    return Saved((page, result, sinks, picture), "")
