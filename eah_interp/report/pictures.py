"""Measure a picture of the user's own."""

from collections.abc import Sequence
from typing import Any

from eah_interp.errors import InputError
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.images import read_image
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report.inspecting import inspect_subject
from eah_interp.report.inspection import Inspection
from eah_interp.report.subject import Question, Subject, ask_for


def inspect_image(
    model: LVLM,
    image: object,
    questions: str | Sequence[str] = (),
    *,
    objects: Sequence[str] = (),
    absent: Sequence[str] = (),
    eah: EAH | None = None,
    caption: bool = True,
    title: str | None = None,
    **options: Any,
) -> Inspection:
    """Measure what EAH does to one picture, for `write_report` to show.

    Every number is from a forward pass of one prompt: no batch, no padding. What a
    model cannot be asked (a word without a token, effects that do not add up) is left
    out and said in `remarks`.

    Args:
        model: The model.
        image: The picture.
        questions: What to ask; where nothing is, for each object, "Is there a ... in
            the image?", and without objects "Describe the image.". The true answer is
            known of questions that are put as these are.
        objects: Objects in the picture.
        absent: Objects that are not in it.
        eah: The settings; the default ones when None.
        caption: Whether to describe the picture in words too.
        title: What the picture is called on the page; its file when None.
        **options: As for `inspect_subject`.

    Returns:
        What was measured.

    Raises:
        InputError: If the picture cannot be read, a question is empty, or an object is
            named twice.
        SettingsError: If a layer or head does not exist.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene
        >>> found = inspect_image(
        ...     eah.load(), draw_scene(0).pil(), objects=["flower"], max_new_tokens=2
        ... )
        >>> found.asked[0].question.prompt, found.remarks
        ('Is there a flower in the image?', ())
    """
    given = [questions] if isinstance(questions, str) else list(questions)
    named = [*objects, *absent]
    check_question(given, named)
    known = {ask_for(o): Question(ask_for(o), o, present=o in objects) for o in named}
    asked = [known.get(prompt, Question(prompt)) for prompt in given]
    if not asked:
        asked = list(known.values())
    subject = Subject(
        image=read_image(image),
        title=title or _name_picture(image),
        present=tuple(objects),
        absent=tuple(absent),
        companions=(),
        questions=tuple(asked) or (Question(DEFAULT_PROMPT),),
    )
    return inspect_subject(model, subject, eah=eah or EAH(), caption=caption, **options)


def check_question(questions: Sequence[str], named: Sequence[str]) -> None:
    """Refuse empty questions, and objects that are named twice.

    Raises:
        InputError: If there are such.
    """
    if any(not prompt.strip() for prompt in questions):
        msg = "a question is empty: ask something, such as 'Is there a boat?'"
        raise InputError(msg)
    if any(not name.strip() for name in named):
        msg = "an object has no name: expected a word, such as boat"
        raise InputError(msg)
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        msg = f"{', '.join(twice)} is named more than once: name each object once"
        raise InputError(msg)


def _name_picture(image: object) -> str:
    path = str(image) if hasattr(image, "__fspath__") or isinstance(image, str) else ""
    return path or "a picture given in Python"
