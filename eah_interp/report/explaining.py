"""Which heads write the logits that were read, at the very tokens that were read."""

from collections.abc import Sequence

from eah_interp.attribution import Case, attribute_heads, attribute_patches
from eah_interp.attribution.cases.readouts import Term, read_tokens
from eah_interp.errors import EAHError
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.report.inspection import Asked, Caption, Explained
from eah_interp.report.reading import Reading
from eah_interp.report.subject import Subject
from eah_interp.report.tokens import yes_no_tokens

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

    Objects that are asked for come first, then those in the picture, then companions.

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
        picture = attribute_patches(model, case, patch=eah)
        picture.picture(0)  # is there a grid to draw?
    except EAHError:
        picture = None
    return Explained(about, heads, picture)
