"""A picture, what is known of it, and what is asked about it."""

import dataclasses

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to ask, and what is known of its answer.

    Attributes:
        prompt: The question.
        object: The object it asks for, if it does.
        present: Whether that object is in the picture; None where nobody said.
    """

    prompt: str
    object: str | None = None
    present: bool | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A picture and what is known of it.

    Attributes:
        image: The picture.
        title: Where it is from.
        present: Objects that are in it.
        absent: Objects that are not.
        companions: Those of the absent that go with the present ones.
        questions: What to ask.
    """

    image: Image.Image
    title: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    companions: tuple[str, ...]
    questions: tuple[Question, ...]


def ask_for(name: str) -> str:
    """Ask whether an object is in the picture.

    Example:
        >>> ask_for("apple")
        'Is there an apple in the image?'
    """
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"Is there {article} {name} in the image?"
