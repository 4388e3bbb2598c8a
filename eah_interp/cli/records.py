"""Results as `--json` prints them and as the demo's folder keeps them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eah_interp.attribution import Circuits, HeadAttribution, HeadPatterns
from eah_interp.attribution.results import largest
from eah_interp.benchmarks.chair import ChairScore
from eah_interp.benchmarks.pope import PopeScore
from eah_interp.benchmarks.readouts import ReadoutAudit
from eah_interp.benchmarks.tabulated import to_plain
from eah_interp.cli.app import save_figure, write_json
from eah_interp.errors import ExtraMissingError, UnsupportedError
from eah_interp.files import save_bytes
from eah_interp.interventions import EAH, FoundSinks, SinkMap
from eah_interp.interventions.found_sinks import KINDS as SINK_KINDS
from eah_interp.lvlm import LVLM, ImageSpan
from eah_interp.report.inspection import (
    Asked,
    Inspection,
    list_donor_sinks,
    list_donors,
)
from eah_interp.report.page import write_report
from eah_interp.report.reading import PATCHED, list_model, list_versions, note_image
from eah_interp.report.tables import KINDS, PARTS, RUNS
from eah_interp.testing import FAMILIES
from eah_interp.testing.support import read_support
from eah_interp.toy.model import TOYS, ToyName, toy_path

SUMS = {"head": "all heads", **KINDS}
"""What effects are summed over, by kind of component."""


def _begin(
    command: str, model: LVLM, name: str | None, eah: EAH | None = None
) -> dict[str, Any]:
    """Name the command, and what made its result."""
    begun: dict[str, Any] = {
        "command": command,
        "versions": list_versions(),
        "model": list_model(model, name),
    }
    return begun if eah is None else {**begun, "settings": eah.to_dict()}


def record_answer(
    found: Asked, *, model: LVLM, name: str | None, eah: EAH, image: Path
) -> dict[str, Any]:
    """Record a question's answers, and the logits of what comes first in them."""
    return {
        **_begin("ask", model, name, eah),
        "image": str(image),
        "note": note_image(model) or None,
        "prompt": found.question.prompt,
        "answers": dict(found.answers),
        "next_tokens": dict(found.next_tokens),
        "yes_minus_no": found.margins,
        "donors": list_donors(found.reading.patches[PATCHED]),
    }


def record_sinks(
    found: SinkMap,
    *,
    k: int,
    donors: list[dict[str, Any]],
    model: LVLM,
    name: str | None,
    eah: EAH,
    image: Path,
    prompt: str,
    kinds: FoundSinks | None = None,
) -> dict[str, Any]:
    """Record the density of every head, the `k` densest, and whom EAH makes donors."""
    top = found.top(k)[["name", "layer", "head", "density", "n_sinks"]]
    gamma = eah.gamma
    return {
        **_begin("sinks", model, name, eah),
        "image": str(image),
        "note": note_image(model) or None,
        "prompt": prompt,
        "n_columns": int(found.columns[0].sum()),
        "grids": [list(span.grid) for span in found.spans[0]],
        "layers": list(found.layers),
        "density": found.density[0].tolist(),
        "dense": None if gamma is None else found.dense(gamma)[0].tolist(),
        "top": top.to_dict(orient="records"),
        "donors": donors,
        **({} if kinds is None else {"kinds": _record_kinds(kinds)}),
    }


def _record_kinds(found: FoundSinks) -> dict[str, Any]:
    """Record how many columns are sinks of each kind, and which."""
    sinks = found.frame().query("kind != 'none'")
    names = ["column", "kind", "tower_score", "language_score", "from_words", "share"]
    rows = sinks[names].to_dict(orient="records")
    return {
        "counts": {kind: int(found.mask(kind).sum()) for kind in SINK_KINDS},
        "reason": found.reason or None,
        "sinks": [
            {name: None if value != value else value for name, value in row.items()}
            for row in rows
        ],
        "learned": found.learned_frame().to_dict(orient="records"),
    }


STRONGEST = 3
"""How many patches of a map are named."""


def record_attention(
    found: HeadPatterns,
    *,
    model: LVLM,
    name: str | None,
    images: Sequence[Path],
    prompt: str,
) -> dict[str, Any]:
    """Record how much of each row goes to each image, and to which of its patches.

    Maps are by head, word (where words were read) and image: the weight of each patch,
    None where it shows padding only; no map where image tokens have no place.
    """
    counts = [len(spans) for spans in found.spans]
    maps = []
    for line in found.shares().to_dict("records"):
        item, number = line["item"], line["image"]
        asked: dict[str, Any] = {name: line.get(name) for name in ("query", "word")}
        asked |= {"head": line["name"], "item": item}
        span = found.span(item, image=number)
        row = found.row(**asked)
        grids = found.picture(**asked, image=number) if span.spatial else ()
        is_head = not pd.isna(line["layer"])
        maps.append(
            {
                "image": str(images[sum(counts[:item]) + number]),
                "name": line["name"],
                "layer": int(line["layer"]) if is_head else None,
                "head": int(line["head"]) if is_head else None,
                "word": line.get("said"),
                "share": line["plain"],
                "strongest": _list_strongest(span, row[list(span.columns)].tolist()),
                "parts": [
                    {"name": part.name, "weights": to_plain(grid.tolist())}
                    for part, grid in zip(span.parts, grids, strict=True)
                ],
            }
        )
    return {
        **_begin("attention", model, name),
        "images": list(map(str, images)),
        "note": note_image(model) or None,
        "prompt": prompt,
        "heads": list(found.names),
        "words": [[word.text for word in words] for words in found.words] or None,
        "spatial": all(span.spatial for spans in found.spans for span in spans),
        "maps": maps,
    }


def _list_strongest(span: ImageSpan, weights: list[float]) -> list[dict[str, Any]]:
    """List the image tokens that get most, with the patch that each stands for."""
    patches = {
        column: {"part": part.name, "row": row, "column": index}
        for part in span.parts
        for row, line in enumerate(part.columns)
        for index, column in enumerate(line)
    }
    ordered = sorted(zip(weights, span.columns, strict=True), reverse=True)
    return [
        {"position": position, "patch": patches.get(position), "weight": weight}
        for weight, position in ordered[:STRONGEST]
    ]


def _list_toy(name: ToyName) -> dict[str, Any]:
    try:
        return {"name": name, "path": str(toy_path(name)), "present": True}
    except ExtraMissingError:
        return {"name": name, "path": None, "present": False}


def list_models() -> dict[str, Any]:
    """List the embedded toys and the tested families, refused ones included."""
    tested = read_support()["families"]
    return {
        "command": "models",
        "toys": [_list_toy(name) for name in TOYS],
        "families": [
            {
                "name": family.name,
                "class": family.model,
                "supported": not family.refused,
                "why": family.refused,
                "tests": tested.get(family.name, {}),
            }
            for family in FAMILIES.values()
        ],
    }


def record_attribution(
    found: HeadAttribution,
    *,
    k: int,
    model: LVLM,
    name: str | None,
    eah: EAH,
    image: Path,
    prompt: str,
    caption: str | None,
) -> dict[str, Any]:
    """Record each target's `k` largest heads, its sums by kind, and what is left."""
    assert found.patched is not None
    table = found.frame()
    # A head matters that writes much in either run: EAH may take its effect away.
    size = table[["plain", "patched"]].abs().max(axis=1)
    heads = table.assign(size=size)[table["kind"] == "head"]
    top = largest(heads, k, by="size")
    columns = ["name", "layer", "head", *RUNS, *PARTS]
    return {
        **_begin("attribute", model, name, eah),
        "image": str(image),
        "note": note_image(model) or None,
        "prompt": prompt,
        "caption": caption,
        "metric": found.metric,
        "donors": [_name_donor(layer, int(h[0])) for layer, h in found.donors.items()],
        "targets": [
            {
                "object": target.label,
                "position": target.position,
                "text": target.text,
                "plain": float(found.plain.values[index]),
                "patched": float(found.patched.values[index]),
                "top": top[top["target"] == index][columns].to_dict("records"),
                "sums": _sum_kinds(table[table["target"] == index]),
            }
            for index, target in enumerate(found.targets)
        ],
        "error": max(float(run.error.max()) for run in (found.plain, found.patched)),
    }


def _sum_kinds(own: pd.DataFrame) -> dict[Any, Any]:
    """Sum one target's effects by kind of component."""
    return own.groupby("kind")[list(RUNS)].sum().loc[list(SUMS)].to_dict("index")


def _name_donor(layer: int, head: int) -> dict[str, Any]:
    if head < 0:
        return {"layer": layer, "head": None, "name": None}
    return {"layer": layer, "head": head, "name": f"L{layer}H{head}"}


def record_toy(
    changes: Mapping[str, pd.DataFrame],
    *,
    model: LVLM,
    name: str | None,
    eah: EAH,
    n_scenes: int,
) -> dict[str, Any]:
    """Record what `compare_benchmarks` found of each condition against plain.

    An interval that is undetermined is null.
    """
    return {
        **_begin("toy", model, name, eah),
        "scenes": n_scenes,
        "changes": {
            name: [_null_nan(row) for row in found.to_dict("records")]
            for name, found in changes.items()
        },
    }


def record_pope(
    score: PopeScore,
    *,
    files: Mapping[str, Path],
    rule: str,
    n_turned: int,
    audit: ReadoutAudit,
) -> dict[str, Any]:
    """Record the score of a file of answers; null where nothing can be said."""
    return {
        "command": "score pope",
        "versions": list_versions(),
        "files": {name: str(path) for name, path in files.items()},
        "rule": rule,
        "n_turned": n_turned,
        "score": _without_nan(score),
        "f1_by_reading": {
            one.name: None if math.isnan(one.score.f1) else one.score.f1
            for one in audit.readouts
        },
    }


def record_chair(
    score: ChairScore, captions: pd.DataFrame, *, files: Mapping[str, Path]
) -> dict[str, Any]:
    """Record the score of a file of captions, and every caption's objects."""
    columns = ["image_id", "mentions", "absent", "n_tokens"]
    return {
        "command": "score chair",
        "versions": list_versions(),
        "files": {name: str(path) for name, path in files.items()},
        "score": _without_nan(score),
        "captions": captions[columns].to_dict("records"),
    }


def record_benchmark(
    name: str, score: Any, *, files: Mapping[str, Path]
) -> dict[str, Any]:
    """Record a benchmark's score; null where nothing can be said."""
    return {
        "command": f"score {name}",
        "versions": list_versions(),
        "files": {key: str(path) for key, path in files.items()},
        "score": to_plain(score),
    }


def _without_nan(score: PopeScore | ChairScore) -> dict[str, Any]:
    return _null_nan(dataclasses.asdict(score))


def _null_nan(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


# ---- One image, looked at closely: the record, and the demo's folder.


def record_inspection(found: Inspection, *, command: str) -> dict[str, Any]:
    """Record what was measured of one image, but for heads.

    Args:
        found: What was measured.
        command: The command that measured it.
    """
    subject, sinks = found.subject, found.sink_map
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
        "sinks": {
            "prompt": found.asked[-1].question.prompt,
            "definition": sinks.definition,
            "beta": sinks.beta,
            "n_columns": int(sinks.columns[0].sum()),
            "layers": list(sinks.layers),
            "density": sinks.density[0].tolist(),
        },
        "note": found.note or None,
        "verdict": list(found.verdict),
        "not_measured": list(found.remarks),
    }


def record_circuit(found: Circuits) -> dict[str, Any]:
    """Record a circuit: its edges, and what circuits of each size have.

    Args:
        found: What was found.
    """
    sizes = found.frame()[["size", "share", "kept", "left", "random"]]
    return {
        "metric": found.metric,
        "source": found.source,
        "n_edges": len(found.senders),
        "plain": found.values.tolist(),
        "other": found.source_values.tolist(),
        "faithfulness": float(found.faithfulness[found.chosen]),
        "sizes": sizes.to_dict("records"),
        "edges": found.list_edges().to_dict("records"),
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


def save_demo(found: Inspection, folder: Path) -> tuple[Sequence[Path], str]:
    """Write result.json, report.html, sinks.png and picture.png into a folder.

    Returns:
        The files, and why picture.png is not among them: where image tokens have no
        known place. Empty where it is.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
        SettingsError: If the folder cannot be written to.
    """
    from eah_interp.viz.overlays import plot_sinks

    names = ("report.html", "result.json", "sinks.png", "picture.png")
    page, result, sinks, overlay = files = [folder / name for name in names]
    record = record_inspection(found, command="demo")
    save_bytes((write_json(record) + "\n").encode(), result)
    write_report(found, page)
    save_figure(found.sink_map.plot(donors=found.donors), sinks)
    patch = found.asked[-1].reading.patches[PATCHED]
    columns = {d.title: d.columns for d in list_donor_sinks(patch, found.sink_map)}
    try:
        drawn = plot_sinks(found.subject.image, found.span, columns=columns)
    except UnsupportedError as error:
        overlay.unlink(missing_ok=True)  # of an earlier demo
        return files[:-1], f"{overlay.name} is not drawn: {error}"
    save_figure(drawn, overlay)
    return files, ""
