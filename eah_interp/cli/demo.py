"""The demo: one picture, a few questions, with and without EAH, and its controls."""

from typing import Any

from eah_interp.cli.console import Bar
from eah_interp.cli.measure import (
    PATCHED,
    PLAIN,
    Reading,
    compare_with,
    describe,
    list_model,
    name_token,
    object_token,
    read_next_token,
    span_of,
    yes_no_tokens,
)
from eah_interp.cli.record import Asked, Caption, Demo, ObjectLogit
from eah_interp.cli.subject import Subject
from eah_interp.cli.verdict import judge
from eah_interp.interventions import EAH, score_sinks
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import DEFAULT_PROMPT


def run_demo(
    model: LVLM,
    subject: Subject,
    *,
    eah: EAH,
    name: str | None = None,
    answer_start: str = "There is a",
    max_new_tokens: int = 40,
    bar: Bar | None = None,
) -> Demo:
    """Ask a model about a picture with and without EAH, and under control donors.

    Every number is from a forward pass of one prompt: no batch, no padding.

    Args:
        model: The model.
        subject: Picture and questions.
        eah: The settings.
        name: What the model was loaded as.
        answer_start: Words after which a caption names an object.
        max_new_tokens: Longest answer in words.
        bar: Told of each forward pass.

    Returns:
        What was measured.

    Raises:
        InputError: If an object's name has no token.
    """
    bar = Bar() if bar is None else bar
    conditions = compare_with(eah, controls=True)
    bar.expect((len(subject.questions) + 1) * (len(conditions) + 2) + 1)
    options = {"max_new_tokens": max_new_tokens, "bar": bar}
    asked = []
    for question in subject.questions:
        prompt = question.prompt
        reading = read_next_token(
            model, subject.image, prompt=prompt, conditions=conditions, bar=bar
        )
        yes, no = _answer_logits(model, reading)
        answers = _answers(model, subject, prompt=prompt, eah=eah, **options)
        asked.append(Asked(question, reading, answers, yes, no))
    start = answer_start if subject.present or subject.absent else ""
    reading = read_next_token(
        model,
        subject.image,
        prompt=DEFAULT_PROMPT,
        conditions=conditions,
        answer_start=start,
        bar=bar,
    )
    caption = Caption(
        prompt=DEFAULT_PROMPT,
        answer_start=start,
        position=reading.position,
        answers=_answers(model, subject, prompt=DEFAULT_PROMPT, eah=eah, **options),
        objects=_object_logits(model, subject, reading),
    )
    bar.step("sinks of every head")
    last = subject.questions[-1].prompt
    sink_map = score_sinks(
        model, subject.image, last, definition=eah.definition, beta=eah.beta
    )
    return Demo(
        model=list_model(model, name),
        eah=eah,
        subject=subject,
        asked=tuple(asked),
        caption=caption,
        sink_map=sink_map,
        span=span_of(model, subject.image, last),
        verdict=judge(
            truths=[one.question.present for one in asked],
            margins=[one.margins for one in asked],
            present=[dict(o.logits) for o in caption.objects if o.present],
            absent=[dict(o.logits) for o in caption.objects if not o.present],
            patched=[
                any(map(bool, (layer.patched[0] for layer in patch.layers)))
                for patch in (one.reading.patches[PATCHED] for one in asked)
            ],
        ),
    )


def _answers(
    model: LVLM, subject: Subject, *, prompt: str, eah: EAH, **options: Any
) -> dict[str, str]:
    return {
        PLAIN: describe(model, subject.image, prompt=prompt, eah=None, **options),
        PATCHED: describe(model, subject.image, prompt=prompt, eah=eah, **options),
    }


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


def _object_logits(
    model: LVLM, subject: Subject, reading: Reading
) -> tuple[ObjectLogit, ...]:
    found = []
    for word in (*subject.present, *subject.absent):
        token = object_token(model, reading, word)
        found.append(
            ObjectLogit(
                object=word,
                token=name_token(model, token),
                present=word in subject.present,
                companion=word in subject.companions,
                logits={n: float(v[token]) for n, v in reading.logits.items()},
            )
        )
    return tuple(found)
