"""The demo: one picture, a few questions, with and without EAH, and its controls."""

from typing import Any

from eah_interp.errors import InputError
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report import Inspection, Subject, inspect_subject
from eah_interp.report.reading import next_tokens, write_text


def run_demo(
    model: LVLM, subject: Subject, *, answer_start: str = "There is a", **options: Any
) -> Inspection:
    """Ask a model about a picture with and without EAH, and under control donors.

    Args:
        model: The model.
        subject: Picture and questions.
        answer_start: Words after which a caption names an object.
        **options: As for `inspect_subject`.

    Returns:
        What was measured.

    Raises:
        InputError: If an object's name has no token.
    """
    named = (*subject.present, *subject.absent)
    if named:
        image = subject.image
        text = write_text(
            model, image, prompt=DEFAULT_PROMPT, answer_start=answer_start
        )
        for word in named:
            if not next_tokens(model, text, word):
                msg = (
                    f"the tokenizer has no token that begins {word!r}: name other "
                    "objects with --object and --absent"
                )
                raise InputError(msg)
    return inspect_subject(model, subject, answer_start=answer_start, **options)
