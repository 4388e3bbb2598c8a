"""Measure a subject: answers, donors, sinks, logits and heads, in single passes."""

import datetime
from typing import Any

from eah_interp.errors import EAHError
from eah_interp.interventions import EAH, score_sinks
from eah_interp.lvlm import LVLM
from eah_interp.report.captions import read_caption
from eah_interp.report.donors import span_of
from eah_interp.report.explaining import explain_answer, explain_objects
from eah_interp.report.facts import describe_model, list_versions
from eah_interp.report.inspection import (
    Asked,
    Broadcast,
    Caption,
    Explained,
    Inspection,
)
from eah_interp.report.looking import look_at_broadcast
from eah_interp.report.reading import (
    PATCHED,
    PLAIN,
    Progress,
    Reading,
    compare_with,
    describe,
    read_next_token,
)
from eah_interp.report.subject import Question, Subject
from eah_interp.report.tokens import likeliest, yes_no_tokens
from eah_interp.report.verdict import judge


def inspect_subject(
    model: LVLM,
    subject: Subject,
    *,
    eah: EAH,
    caption: bool = True,
    answer_start: str = "There is a",
    max_new_tokens: int = 40,
    name: str | None = None,
    command: str = "",
    bar: Progress | None = None,
) -> Inspection:
    """Measure what EAH does to a picture of which something is known.

    Args:
        model: The model.
        subject: Picture and questions.
        eah: The settings.
        caption: Whether to describe the picture in words too.
        answer_start: Words after which a caption names an object.
        max_new_tokens: Longest answer, in tokens.
        name: What the model was loaded as.
        command: The command that makes the result again.
        bar: Told of each step.

    Returns:
        What was measured.

    Raises:
        SettingsError: If a layer or head does not exist.
    """
    for layer in eah.layers:
        model.anatomy.site(layer)
    eah.check_fits(n_heads=model.n_heads)
    conditions = compare_with(eah, controls=True)
    named = bool(subject.present or subject.absent)
    if bar is not None:
        bar.expect((len(subject.questions) + named) * (len(conditions) + 2) + 2)
    options: dict[str, Any] = {"eah": eah, "max_new_tokens": max_new_tokens, "bar": bar}
    remarks: list[str] = []
    asked: list[Asked] = []
    explained: list[Explained] = []
    for question in subject.questions:
        one = _ask(model, subject, question, conditions=conditions, **options)
        asked.append(one)
        if one.is_yes_no:
            _try(explained, remarks, explain_answer, model, subject, one, eah=eah)
        elif not one.yes:
            remarks.append(
                f'Yes and No were not compared on "{question.prompt}": the tokenizer '
                "has no token that begins either after this prompt."
            )
    told: Caption | None = None
    if caption or named:
        told, reading, more = read_caption(
            model,
            subject,
            conditions=conditions,
            answer_start=answer_start if named else "",
            in_words=caption,
            **options,
        )
        remarks += more
        if bar is not None:
            bar.step("direct effects of every head")
        if told.objects:
            arguments = (model, subject, told, reading)
            _try(explained, remarks, explain_objects, *arguments, eah=eah)
    if bar is not None:
        bar.step("sinks of every head")
    last = subject.questions[-1].prompt
    sink_map = score_sinks(
        model, subject.image, last, definition=eah.definition, beta=eah.beta
    )
    now = datetime.datetime.now(datetime.UTC)
    objects = told.objects if told else ()
    return Inspection(
        model=describe_model(model, name),
        versions=list_versions(),
        made_at=now.strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
        eah=eah,
        subject=subject,
        asked=tuple(asked),
        caption=told,
        sink_map=sink_map,
        span=span_of(model, subject.image, last),
        broadcast=_look(model, subject, remarks, eah=eah),
        explained=tuple(explained),
        verdict=judge(
            truths=[one.question.present for one in asked],
            margins=[one.margins for one in asked],
            present=[dict(o.logits) for o in objects if o.present],
            absent=[dict(o.logits) for o in objects if not o.present],
            patched=[
                any(map(bool, (layer.patched[0] for layer in patch.layers)))
                for patch in (one.reading.patches[PATCHED] for one in asked)
            ],
        ),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _ask(
    model: LVLM,
    subject: Subject,
    question: Question,
    *,
    conditions: dict[str, EAH | None],
    eah: EAH,
    max_new_tokens: int,
    bar: Progress | None,
) -> Asked:
    """Ask one question: logits under every condition, answers in words."""
    prompt = question.prompt
    reading = read_next_token(
        model, subject.image, prompt=prompt, conditions=conditions, bar=bar
    )
    yes, no = _answer_logits(model, reading)
    words = {
        run: describe(
            model,
            subject.image,
            prompt=prompt,
            eah=settings,
            max_new_tokens=max_new_tokens,
            bar=bar,
        )
        for run, settings in ((PLAIN, None), (PATCHED, eah))
    }
    top = {run: likeliest(model, reading.logits[run]) for run in (PLAIN, PATCHED)}
    return Asked(question, reading, words, yes, no, top)


def _answer_logits(
    model: LVLM, reading: Reading
) -> tuple[dict[str, float], dict[str, float]]:
    tokens = yes_no_tokens(model, reading)
    if tokens is None:
        return {}, {}
    yes, no = tokens
    logits = reading.logits
    return (
        {name: float(values[yes]) for name, values in logits.items()},
        {name: float(values[no]) for name, values in logits.items()},
    )


def _look(
    model: LVLM, subject: Subject, remarks: list[str], *, eah: EAH
) -> Broadcast | None:
    """Look at the broadcast; where a model does not allow it, say why."""
    try:
        return look_at_broadcast(model, subject, subject.questions[-1].prompt, eah=eah)
    except EAHError as error:
        remarks.append(f"Heads were not read before and after the broadcast: {error}")
        return None


def _try(
    explained: list[Explained],
    remarks: list[str],
    explain: Any,
    *arguments: Any,
    eah: EAH,
) -> None:
    """Explain logits by heads; where a model does not allow it, say why."""
    try:
        explained.append(explain(*arguments, eah=eah))
    except EAHError as error:
        remarks.append(f"Logits were not split by heads: {error}")
