"""A study summed up, or two compared: answers scored, then values and changes."""

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eah_interp.arguments import by_name, check_flag, check_kind
from eah_interp.benchmarks.chair import STARTS
from eah_interp.benchmarks.lengths import By, CapChange, contrast_cap
from eah_interp.benchmarks.paired import Draws, check_drawing
from eah_interp.benchmarks.pope import Rule
from eah_interp.benchmarks.readouts import ReadoutAudit, audit_readouts
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.studies.conditions import BASELINE, list_acted
from eah_interp.studies.contrasts import (
    adjust_summary,
    contrast_conditions,
    score_conditions,
)
from eah_interp.studies.manifest import Manifest, load_items, name_images
from eah_interp.studies.scores import ScoredRows, score_rows
from eah_interp.studies.study import StudyRun
from eah_interp.studies.summary import StudySummary

REFERENCE = BASELINE.name


@by_name
def summarise(
    run: StudyRun,
    *,
    reference: str = REFERENCE,
    partial: bool = False,
    draws: Draws | None = None,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    rule: Rule = "pope",
) -> StudySummary:
    """Sum a study up.

    Args:
        run: The study.
        reference: What every condition is compared with.
        partial: Whether to sum up what is there of a study that is not complete.
        draws: Level, samples and seed of the intervals; `Draws()` when None.
        annotations: As for `score_rows`.
        synonyms: As for `score_rows`.
        rule: Whose reading of a yes/no answer.

    Returns:
        The summary.

    Raises:
        UnsupportedError: If rows are missing and `partial` is not set.
        SettingsError: If there is no such reference.
        InputError: As for `score_rows`.
        ExtraMissingError: If statsmodels is not installed, or NLTK where needed.
    """
    check_sum(run, reference=reference, partial=partial)
    rows = score_rows(run, annotations=annotations, synonyms=synonyms, rule=rule)
    return sum_up(run, rows, reference=reference, draws=draws, rule=rule)


def check_sum(run: StudyRun, *, reference: str, partial: bool) -> None:
    """Check that a study can be summed up against a reference, before it is scored.

    Raises:
        UnsupportedError: If rows are missing and `partial` is not set.
        SettingsError: If there is no such reference.
    """
    check_kind("run", run, StudyRun, expected="a StudyRun")
    partial = check_flag("partial", partial)
    if not partial:
        run.check_complete()
    if not isinstance(reference, str) or reference not in run.conditions:
        listed = ", ".join(run.conditions)
        got = show_value(reference)
        msg = f"reference must be a condition of the study ({listed}), got {got}"
        raise SettingsError(msg)


def sum_up(
    run: StudyRun,
    rows: ScoredRows,
    *,
    reference: str,
    draws: Draws | None,
    rule: Rule,
) -> StudySummary:
    """Sum up a study whose answers are scored, as `summarise` says."""
    draws = check_drawing(draws)
    acted = list_acted(run.manifest.conditions)
    contrasts = [
        contrast
        for name in run.conditions
        if name != reference
        for contrast in contrast_conditions(
            rows, name, reference=reference, draws=draws
        )
        # What a condition cannot change is no comparison, and no test of the family.
        if _may_differ(acted, name, reference, contrast.metric.task)
    ]
    return StudySummary(
        name=run.folder.resolve().name,
        manifest=run.manifest,
        reference=reference,
        draws=draws,
        rule=rule,
        scores=score_conditions(rows, run.conditions, draws=draws),
        contrasts=adjust_summary(contrasts),
        failures=_list_failures(rows),
        notes=rows.notes,
        readouts=_audit(rows, run.conditions),
        caps=tuple(
            change
            for name in run.conditions
            if name != reference and _may_differ(acted, name, reference, "caption")
            for change in _cap(rows, name, reference, draws)
        ),
    )


def _cap(
    rows: ScoredRows, name: str, reference: str, draws: Draws
) -> Iterator[CapChange]:
    """Compare captions with the reference's, cut to the same mean length."""
    told = rows.captions
    before, after = (told[told.condition == one] for one in (reference, name))
    if not set(before["item"]) & set(after["item"]):
        return
    units: tuple[By, ...] = ("objects", "words") if STARTS in told else ("objects",)
    for by in units:
        try:
            yield from contrast_cap(before, after, by=by, condition=name, draws=draws)
        except InputError:  # of one image there is no interval
            return


def _may_differ(
    acted: Mapping[str, Collection[str]], name: str, reference: str, task: str
) -> bool:
    """Tell whether one of two conditions can change a task's answers.

    One that has no kind of condition (the model as it is, under another name) is
    compared all the same: its answers should not differ.
    """
    sides = [acted[name], acted[reference]]
    return not any(sides) or any(task in side for side in sides)


@by_name
def compare_runs(
    before: StudyRun,
    after: StudyRun,
    *,
    allow_different: bool = False,
    partial: bool = False,
    draws: Draws | None = None,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    rule: Rule = "pope",
) -> StudySummary:
    """Compare two studies, condition by condition of the same name.

    Args:
        before: The first.
        after: The second.
        allow_different: Whether their manifests may differ: two models, say, or two
            ways to decode. What differs is then named in the notes, and only items
            with the same image, prompt and label are compared.
        partial: As for `summarise`.
        draws: As for `summarise`.
        annotations: As for `summarise`.
        synonyms: As for `summarise`.
        rule: As for `summarise`.

    Returns:
        A summary of the second, whose changes are against the first.

    Raises:
        SettingsError: If the manifests differ and `allow_different` is not set; what
            differs is named. If they share no condition.
        InputError: If they share no item.
        UnsupportedError: As for `summarise`.
        ExtraMissingError: As for `summarise`.
    """
    if not check_flag("allow_different", allow_different):
        renew(before).check_same(renew(after), where=before.folder)
    if not check_flag("partial", partial):
        before.check_complete()
        after.check_complete()
    names = [name for name in after.conditions if name in before.conditions]
    if not names:
        msg = (
            f"expected studies with a condition of the same name, got "
            f"{', '.join(before.conditions)} against {', '.join(after.conditions)}"
        )
        raise SettingsError(msg)
    draws = Draws() if draws is None else draws
    options = {"annotations": annotations, "synonyms": synonyms}
    shared = _shared_items(before, after)
    old, new = (
        _only(score_rows(run, rule=rule, **options), shared) for run in (before, after)
    )
    contrasts = [
        dataclasses.replace(contrast, reference=f"{before.folder.name}: {name}")
        for name in names
        for contrast in contrast_conditions(
            new, name, reference=name, draws=draws, reference_rows=old
        )
    ]
    differences = renew(before).differences(renew(after))
    notes = [
        f"{before.folder.name} against {after.folder.name}: {d}" for d in differences
    ]
    lost = max(before.manifest.n_items, after.manifest.n_items) - len(shared)
    if lost:
        notes.append(f"{lost} items are in one of the two studies only: left out.")
    return StudySummary(
        name=f"{after.folder.resolve().name} against {before.folder.resolve().name}",
        manifest=after.manifest,
        reference=f"{before.folder.name}: the same condition",
        draws=draws,
        rule=rule,
        scores=score_conditions(new, names, draws=draws),
        contrasts=adjust_summary(contrasts),
        failures=_list_failures(new),
        notes=(*new.notes, *notes),
        readouts=_audit(new, names),
    )


def renew(run: StudyRun) -> Manifest:
    """Return a study's manifest as it would be written now."""
    manifest = run.manifest
    return manifest.renew(load_items(run.folder, manifest))


def _shared_items(before: StudyRun, after: StudyRun) -> set[str]:
    known = before.manifest.images is not None and after.manifest.images is not None
    first, second = (set(_list_asked(run, known=known)) for run in (before, after))
    both = {str(values[0]) for values in first & second}
    if not both:
        msg = (
            f"{before.folder} and {after.folder} share no item: expected some with the "
            "same name, image, prompt and label"
        )
        raise InputError(msg)
    return both


def _list_asked(run: StudyRun, *, known: bool) -> Iterator[tuple[Any, ...]]:
    """List what is asked; images by their bytes where both studies know them."""
    manifest = run.manifest
    items = load_items(run.folder, manifest)
    images = [os.path.normpath(item.image) for item in items]
    for item, image in zip(
        items, name_images(items, manifest) if known else images, strict=True
    ):
        prompt = json.dumps(item.prompt)  # messages are dicts, which have no hash
        yield item.id, item.task, image, prompt, item.label


def _only(rows: ScoredRows, items: set[str]) -> ScoredRows:
    def keep(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["item"].isin(items)].reset_index(drop=True)

    return dataclasses.replace(
        rows, questions=keep(rows.questions), captions=keep(rows.captions)
    )


def _audit(rows: ScoredRows, conditions: Sequence[str]) -> dict[str, ReadoutAudit]:
    """Read each condition's yes/no answers in every way."""
    found = {}
    for name in conditions:
        own = rows.questions[rows.questions.condition == name]
        if len(own):
            found[name] = audit_readouts(own.assign(present=own.present.astype(bool)))
    return found


def _list_failures(rows: ScoredRows) -> tuple[dict[str, Any], ...]:
    """List how many items each condition answered."""
    return tuple(
        {str(name): value for name, value in row.items()}
        for row in rows.failures.to_dict("records")
    )
