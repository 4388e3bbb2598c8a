"""Images to look at, and what is asked about them: a user's own, or a toy scene."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eah_interp.arguments import check_unicode
from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_list
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.images import read_image
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report.reading import first_token, write_text
from eah_interp.results import Part
from eah_interp.toy.language import questions_for
from eah_interp.toy.scenes import draw_scene
from eah_interp.toy.world import GROUPS, OBJECTS, group_of


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Question(Part):
    """A question to ask, and what is known of its answer.

    Attributes:
        prompt: The question.
        object: The object it asks for, if it does.
        present: Whether that object is in the image; None where nobody said.
    """

    prompt: str
    object: str | None = None
    present: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Subject(Part):
    """An image and what is known of it.

    Attributes:
        image: The image itself.
        title: Where it is from.
        present: Objects that are in it.
        absent: Objects that are not.
        companions: Those of the absent that go with the present ones.
        questions: What to ask.
        drawn: Whether the toy world drew it.
    """

    image: Image.Image
    title: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    companions: tuple[str, ...]
    questions: tuple[Question, ...]
    drawn: bool = False


def ask_for(name: str) -> str:
    """Write the question whether an object is in the image.

    Example:
        >>> ask_for("apple")
        'Is there an apple in the image?'
    """
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"Is there {article} {name} in the image?"


def choose_subject(
    *,
    image: Path | None = None,
    scene: int = 0,
    objects: Sequence[str] = (),
    absent: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> Subject:
    """Read an image, or draw a test scene of the toy world, and decide what to ask.

    Args:
        image: An image; a scene is drawn when None.
        scene: Seed of the scene.
        objects: What is in the image; a scene is drawn with these in it.
        absent: What is not in it.
        prompts: What to ask instead of "Is there a ... in the image?".

    Returns:
        The image and the questions.

    Raises:
        InputError: If an object is named as present and as absent, a scene cannot be
            drawn with it, or the image cannot be read.

    Example:
        >>> [question.present for question in choose_subject(scene=3).questions]
        [True, False]
    """
    both = sorted(set(objects) & set(absent))
    if both:
        msg = f"{', '.join(both)} cannot be in the image and absent: name it once"
        raise InputError(msg)
    if image is None:
        return draw_subject(scene, objects=objects, absent=absent, prompts=prompts)
    return make_subject(
        image, prompts, objects=objects, absent=absent, title=str(image)
    )


def make_subject(
    image: object,
    questions: Sequence[str] = (),
    *,
    objects: Sequence[str] = (),
    absent: Sequence[str] = (),
    title: str,
) -> Subject:
    """Make a subject of an image of the user's own.

    Args:
        image: The image.
        questions: What to ask; where nothing is, for each object, "Is there a ... in
            the image?", and without objects "Describe the image.". The true answer is
            known of questions that are put as these are.
        objects: Objects in the image.
        absent: Objects that are not in it.
        title: Where the image is from.

    Raises:
        InputError: If the image cannot be read.

    Example:
        >>> from eah_interp.testing import random_image
        >>> asked = ["Is there a dog in the image?", "What is it?"]
        >>> subject = make_subject(random_image(), asked, objects=["dog"], title="a")
        >>> [question.present for question in subject.questions]
        [True, None]
    """
    named = [*objects, *absent]
    known = {ask_for(o): Question(ask_for(o), o, present=o in objects) for o in named}
    asked = [known.get(prompt, Question(prompt)) for prompt in questions]
    return Subject(
        image=read_image(image),
        title=title,
        present=tuple(objects),
        absent=tuple(absent),
        companions=(),
        questions=tuple(asked or known.values()) or (Question(DEFAULT_PROMPT),),
    )


def draw_subject(
    scene: int,
    *,
    objects: Sequence[str] = (),
    absent: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> Subject:
    """Draw a test scene of the toy world.

    Asked for are an object that is there, and one that is not but often goes with it:
    that is where a model that guesses from company goes wrong.

    Raises:
        InputError: If a scene cannot be drawn so.
    """
    unknown = [name for name in objects if name not in OBJECTS]
    if unknown:
        msg = (
            f"no scene can be drawn with {', '.join(unknown)}: choose from "
            f"{', '.join(OBJECTS)}, or name an image of yours with --image"
        )
        raise InputError(msg)
    drawn = draw_scene(scene, objects=list(dict.fromkeys(objects)) or None)
    there = [name for name in absent if name in drawn.objects]
    if there:
        msg = f"{', '.join(there)} is in scene {scene}: name another object as absent"
        raise InputError(msg)
    pair = questions_for(drawn, sampling="adversarial")
    asked = [Question(q.text, q.object, present=q.answer) for q in pair]
    if absent:
        asked = [asked[0]] + [Question(ask_for(o), o, present=False) for o in absent]
    missing = [name for name in OBJECTS if name not in drawn.objects]
    near = {name for group in map(group_of, drawn.objects) for name in GROUPS[group]}
    return Subject(
        image=drawn.pil(),
        title=f"test scene {scene} of the toy world",
        present=drawn.objects,
        absent=tuple(dict.fromkeys((*missing, *absent))),
        companions=tuple(name for name in missing if name in near),
        questions=tuple(map(Question, prompts)) or tuple(asked),
        drawn=True,
    )


def list_texts(name: str, value: object) -> list[str]:
    """List one text, or several.

    Raises:
        InputError: If it is something else.
    """
    listed = [value] if isinstance(value, str) else to_list(value)
    if listed is None or not all(isinstance(one, str) for one in listed):
        raise InputError(f"{name} must be texts, got {show_value(value)}")
    return [check_unicode(name, one) for one in listed]


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


def check_words(model: LVLM, subject: Subject, *, answer_start: str) -> None:
    """Check that a caption could go on with each object's name, before work begins.

    Args:
        model: The model.
        subject: The image and its objects.
        answer_start: Words after which a caption names an object.

    Raises:
        InputError: If an object's name has no token, or an answer cannot be begun.
    """
    words = (*subject.present, *subject.absent)
    if not words:
        return
    text = write_text(
        model, subject.image, prompt=DEFAULT_PROMPT, answer_start=answer_start
    )
    for word in words:
        first_token(model, text, word)
