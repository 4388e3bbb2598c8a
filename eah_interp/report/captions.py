"""The caption of a picture, and the logits of objects where it names one."""

from eah_interp.errors import InputError
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report.inspection import Caption, ObjectLogit
from eah_interp.report.reading import (
    PATCHED,
    PLAIN,
    Progress,
    Reading,
    describe,
    read_next_token,
    write_text,
)
from eah_interp.report.subject import Subject
from eah_interp.report.tokens import name_token, object_token


def read_caption(
    model: LVLM,
    subject: Subject,
    *,
    conditions: dict[str, EAH | None],
    eah: EAH,
    answer_start: str,
    in_words: bool,
    max_new_tokens: int,
    bar: Progress | None,
) -> tuple[Caption, Reading, list[str]]:
    """Describe a picture, and read the logits of objects where a caption names one.

    Args:
        model: The model.
        subject: The picture and its objects.
        conditions: Settings by name; None for no patch.
        eah: The settings.
        answer_start: Words after which a caption names an object.
        in_words: Whether to write captions too.
        max_new_tokens: Longest caption, in tokens.
        bar: Told of each step.

    Returns:
        The caption; the reading; and what could not be read, with why.
    """
    remarks: list[str] = []
    words = (*subject.present, *subject.absent)
    try:
        write_text(
            model, subject.image, prompt=DEFAULT_PROMPT, answer_start=answer_start
        )
    except InputError as error:
        remarks.append(f"Logits of objects were not read: {error}.")
        answer_start, words = "", ()
    reading = read_next_token(
        model,
        subject.image,
        prompt=DEFAULT_PROMPT,
        conditions=conditions,
        answer_start=answer_start,
        bar=bar,
    )
    found = []
    for word in words:
        try:
            token = object_token(model, reading, word)
        except InputError:
            remarks.append(
                f'The logit of "{word}" was not read: the tokenizer has no token that '
                f'begins it after "{answer_start}".'
            )
            continue
        found.append(
            ObjectLogit(
                object=word,
                token=name_token(model, token),
                token_id=token,
                present=word in subject.present,
                companion=word in subject.companions,
                logits={n: float(v[token]) for n, v in reading.logits.items()},
            )
        )
    runs = ((PLAIN, None), (PATCHED, eah)) if in_words else ()
    answers = {
        run: describe(
            model,
            subject.image,
            prompt=DEFAULT_PROMPT,
            eah=settings,
            max_new_tokens=max_new_tokens,
            bar=bar,
        )
        for run, settings in runs
    }
    caption = Caption(
        prompt=DEFAULT_PROMPT,
        answer_start=answer_start,
        position=reading.position,
        answers=answers,
        objects=tuple(found),
    )
    return caption, reading, remarks
