"""Measure what EAH does to one image: answers, donors, sinks, logits and heads.

`inspect_image` measures an image of the user's own, `inspect_subject` one of which more
is known. Every number is from a forward pass of one prompt: no batch, no padding.
"""

import datetime
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from eah_interp.arguments import by_name, check_flag, check_text
from eah_interp.attribution import (
    Case,
    attribute_heads,
    attribute_patches,
    read_patterns,
    score_broadcast,
)
from eah_interp.attribution.readouts import Term, read_tokens
from eah_interp.attribution.sides import check_broadcast
from eah_interp.errors import EAHError, InputError
from eah_interp.interventions import EAH, find_sinks, score_sinks
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report.inspection import (
    Asked,
    Broadcast,
    Caption,
    Explained,
    Inspection,
    ObjectLogit,
    judge,
)
from eah_interp.report.reading import (
    PATCHED,
    PLAIN,
    Progress,
    Reading,
    compare_with,
    describe,
    describe_model,
    likeliest,
    list_versions,
    name_token,
    note_image,
    object_token,
    read_next_token,
    write_text,
    yes_no_tokens,
)
from eah_interp.report.subjects import (
    Question,
    Subject,
    check_question,
    list_texts,
    make_subject,
)

Found = TypeVar("Found")

NOT_SPLIT = "Logits were not split by heads"
NOT_LOOKED = "Heads were not read before and after the broadcast"
NOT_TRACED = "No circuit was found"
NOT_TOLD = "Sinks of the vision tower and of the language model were not told apart"


@by_name
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
    """Measure what EAH does to one image, for `write_report` to show.

    What a model cannot be asked (a word without a token, effects that do not add up)
    is left out, and `remarks` has the reason.

    Args:
        model: The model.
        image: The image: a path, a PIL image, an array or a tensor.
        questions: What to ask; where nothing is, for each object, "Is there a ... in
            the image?", and without objects "Describe the image.". The true answer is
            known of questions that are put as these are.
        objects: Objects in the image.
        absent: Objects that are not in it.
        eah: The settings; the default ones when None.
        caption: Whether to describe the image in words too.
        title: What the image is called on the page; its file when None.
        **options: As for `inspect_subject`.

    Returns:
        What was measured.

    Raises:
        InputError: If the image cannot be read, a question is empty, or an object is
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
    given = list_texts("questions", questions)
    objects = list_texts("objects", objects)
    absent = list_texts("absent", absent)
    check_question(given, [*objects, *absent])
    if title is not None:
        check_text("title", title)
    subject = make_subject(
        image,
        given,
        objects=objects,
        absent=absent,
        title=title or _name_image(image),
    )
    settings = EAH() if eah is None else eah
    return inspect_subject(model, subject, eah=settings, caption=caption, **options)


def _name_image(image: object) -> str:
    path = str(image) if hasattr(image, "__fspath__") or isinstance(image, str) else ""
    return path or "an image given in Python"


@by_name
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
    """Measure what EAH does to an image of which something is known.

    Args:
        model: The model.
        subject: Image and questions.
        eah: The settings.
        caption: Whether to describe the image in words too.
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
    check_broadcast(model, eah)
    caption = check_flag("caption", caption)
    answer_start = check_text("answer_start", answer_start)
    command = check_text("command", command)
    name = None if name is None else check_text("name", name)
    conditions = compare_with(eah, controls=True)
    named = bool(subject.present or subject.absent)
    if bar is not None:
        bar.expect((len(subject.questions) + named) * (len(conditions) + 2) + 2)
    options: dict[str, Any] = {"eah": eah, "max_new_tokens": max_new_tokens, "bar": bar}
    remarks: list[str] = []
    asked: list[Asked] = []
    explained: list[Explained] = []
    for question in subject.questions:
        one = ask_question(
            model, subject.image, question, conditions=conditions, **options
        )
        asked.append(one)
        if one.is_yes_no:
            explain = partial(explain_answer, model, subject, one, eah=eah)
            explained += attempt(explain, remarks, NOT_SPLIT)
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
            explain = partial(explain_objects, model, subject, told, reading, eah=eah)
            explained += attempt(explain, remarks, NOT_SPLIT)
    if bar is not None:
        bar.step("sinks of every head")
    last = subject.questions[-1].prompt
    sink_map = score_sinks(
        model, subject.image, last, definition=eah.definition, beta=eah.beta
    )
    look = partial(look_at_broadcast, model, subject, last, eah=eah)
    looked = attempt(look, remarks, NOT_LOOKED)
    tell = partial(find_sinks, model, subject.image, last)
    kinds = attempt(tell, remarks, NOT_TOLD)
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
        # an encoding of the model's knows the image's size, so places are known
        span=model.spans(model.encode(subject.image, last))[0][0],
        broadcast=looked[0] if looked else None,
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
        note=note_image(model, drawn=subject.drawn),
        kinds=kinds[0] if kinds else None,
    )


def attempt(measure: Callable[[], Found], remarks: list[str], what: str) -> list[Found]:
    """Measure; where a model does not allow it, remark why and return nothing."""
    try:
        return [measure()]
    except EAHError as error:
        remarks.append(f"{what}: {error}")
        return []


# ---- A question: its answers in words, and the logits of Yes and No.


def ask_question(
    model: LVLM,
    image: Image.Image,
    question: Question,
    *,
    conditions: dict[str, EAH | None],
    eah: EAH,
    max_new_tokens: int,
    bar: Progress | None = None,
) -> Asked:
    """Ask one question: logits under every condition, answers in words.

    Args:
        model: The model.
        image: What it is asked about.
        question: The question.
        conditions: Settings by name, as of `compare_with`; None for no patch.
        eah: The settings under which it answers in words, beside the plain model.
        max_new_tokens: Longest answer, in tokens.
        bar: Told of each step.
    """
    prompt = question.prompt
    reading = read_next_token(
        model, image, prompt=prompt, conditions=conditions, bar=bar
    )
    yes, no = _answer_logits(model, reading)
    words = {
        run: describe(
            model,
            image,
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


# ---- The caption of an image, and the logits of objects where it names one.


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
    """Describe an image, and read the logits of objects where a caption names one.

    Args:
        model: The model.
        subject: The image and its objects.
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


# ---- Which heads write the logits that were read, at the very tokens that were read.


MOST_OBJECTS = 3
"""Objects that are split by heads; the logits of all are listed."""


def explain_answer(model: LVLM, subject: Subject, one: Asked, *, eah: EAH) -> Explained:
    """Split Yes minus No, as the first word of an answer, by heads.

    Raises:
        EAHError: If the model does not allow it.
    """
    tokens = yes_no_tokens(model, one.reading)
    assert tokens is not None
    yes, no = tokens
    about = f"Yes minus No, as the first word of the answer to: {one.question.prompt}"
    terms = [("Yes - No", [(yes, 1.0), (no, -1.0)])]
    return _explain(model, subject, one.reading, about=about, terms=terms, eah=eah)


def explain_objects(
    model: LVLM, subject: Subject, caption: Caption, reading: Reading, *, eah: EAH
) -> Explained:
    """Split the logits of the first few objects by heads.

    Objects that are asked for come first, then those in the image, then companions.

    Raises:
        EAHError: If the model does not allow it.
    """
    asked = {question.object for question in subject.questions}
    ordered = sorted(
        caption.objects,
        key=lambda o: (o.object not in asked, not o.present, not o.companion),
    )
    terms = [(o.object, [(o.token_id, 1.0)]) for o in ordered[:MOST_OBJECTS]]
    about = f'Objects, after "{caption.answer_start}" in a caption'
    return _explain(model, subject, reading, about=about, terms=terms, eah=eah)


def _explain(
    model: LVLM,
    subject: Subject,
    reading: Reading,
    *,
    about: str,
    terms: Sequence[tuple[str, Sequence[tuple[int, float]]]],
    eah: EAH,
) -> Explained:
    encoding = model.encode(subject.image, reading.text)
    last = reading.position
    targets = []
    for label, tokens in terms:
        own: list[Term] = [(last, token, weight) for token, weight in tokens]
        targets.append((label, 0, last, label, own))
    case = Case(encoding, None, read_tokens(targets))
    heads = attribute_heads(model, case, patch=eah)
    try:
        patches = attribute_patches(model, case, patch=eah)
        patches.picture(0)  # is there a grid to draw?
    except EAHError:
        patches = None
    return Explained(about, heads, patches)


# ---- Where a donor and one of its recipients look, before and after the broadcast.


def look_at_broadcast(
    model: LVLM, subject: Subject, prompt: str, *, eah: EAH
) -> Broadcast:
    """Score the heads of the first patched layer, and read two of their patterns.

    The two are the donor and, of the recipients, the one with the fewest sinks, read
    from the last position of the prompt.

    Args:
        model: The model.
        subject: The image.
        prompt: What is asked.
        eah: The settings.

    Returns:
        Scores of every head; no patterns where no head donated.

    Raises:
        EAHError: If the model does not allow it.
    """
    layer = eah.layers[0]
    scores = score_broadcast(model, subject.image, prompt, eah=eah, layers=[layer])
    donor = int(scores.donors[layer][0])
    if donor < 0:
        return Broadcast(scores, None)
    density = scores.density("plain")[0, 0].tolist()
    received = scores.recipients_mask[0, 0].tolist()
    others = [h for h, is_one in enumerate(received) if is_one and h != donor]
    heads = [donor, *sorted(others, key=lambda head: density[head])[:1]]
    patterns = read_patterns(
        model,
        subject.image,
        prompt,
        heads=[(layer, head) for head in heads],
        patch=eah,
    )
    return Broadcast(scores, patterns)
