"""What the demo looks at, and what it asks."""

from collections.abc import Sequence
from pathlib import Path

from eah_interp.errors import InputError
from eah_interp.lvlm.images import read_image
from eah_interp.lvlm.inputs import DEFAULT_PROMPT
from eah_interp.report.reading import Question, Subject, ask_for
from eah_interp.toy.language import questions_for
from eah_interp.toy.scenes import draw_scene
from eah_interp.toy.world import GROUPS, OBJECTS, group_of


def choose_subject(
    *,
    image: Path | None = None,
    scene: int = 0,
    objects: Sequence[str] = (),
    absent: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> Subject:
    """Read a picture, or draw a test scene of the toy world, and decide what to ask.

    Args:
        image: A picture; a scene is drawn when None.
        scene: Seed of the scene.
        objects: What is in the picture; a scene is drawn with these in it.
        absent: What is not in it.
        prompts: What to ask instead of "Is there a ... in the image?".

    Returns:
        The picture and the questions.

    Raises:
        InputError: If an object is named as present and as absent, a scene cannot be
            drawn with it, or the picture cannot be read.

    Example:
        >>> [question.present for question in choose_subject(scene=3).questions]
        [True, False]
    """
    both = sorted(set(objects) & set(absent))
    if both:
        msg = f"{', '.join(both)} cannot be in the picture and absent: name it once"
        raise InputError(msg)
    given = tuple(Question(prompt) for prompt in prompts)
    if image is not None:
        asked = [Question(ask_for(o), o, present=True) for o in objects]
        asked += [Question(ask_for(o), o, present=False) for o in absent]
        return Subject(
            image=read_image(image),
            title=str(image),
            present=tuple(objects),
            absent=tuple(absent),
            companions=(),
            questions=given or tuple(asked) or (Question(DEFAULT_PROMPT),),
        )
    unknown = [name for name in objects if name not in OBJECTS]
    if unknown:
        msg = (
            f"no scene can be drawn with {', '.join(unknown)}: choose from "
            f"{', '.join(OBJECTS)}, or name a picture of yours with --image"
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
        questions=given or tuple(asked),
    )
