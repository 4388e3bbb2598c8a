"""Building POPE questions from any ground truth, as the official sampler does."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import pandas as pd

from eah_interp.errors import InputError, SettingsError

PopeSampling: TypeAlias = Literal["random", "popular", "adversarial"]
"""Which absent objects are asked for."""

Objects: TypeAlias = Mapping[str, Sequence[str]]
"""Objects in each picture, in the order of their annotations."""


def build_pope_questions(
    objects: Objects,
    *,
    sampling: PopeSampling,
    pairs: int = 3,
    n_images: int | None = 500,
    seed: int = 0,
    template: str = "Is there a {} in the image?",
) -> pd.DataFrame:
    """Build POPE's yes/no questions about pictures whose objects are known.

    Source: Li et al., 2023 (arXiv:2305.10355), section 5, and the sampler they
    released. Of the pictures with at least `pairs` objects, `n_images` are drawn, the
    same ones for every sampling. Each is asked about its first `pairs` objects, and
    after each of them about one that is absent and not asked about yet: "random", any
    object of the drawn pictures; "popular", the one in most of them; "adversarial",
    the one that is most often in a picture with the object just asked about, or any
    where none is left. Ties go to the object met first.

    Not their code's: the draws of its random generator, and a slip that makes
    questions with "an" end in "in the imange?".

    Args:
        objects: Picture (a file name, say) to its objects; repetitions count once.
        sampling: How absent objects are chosen.
        pairs: Questions with the answer yes, and as many with no, for each picture.
        n_images: Pictures to draw; None takes all that have enough objects, in order.
        seed: Seeds the draws.
        template: The question, with {} for the object; "a {}" becomes "an {}" before
            a, e, i, o, u.

    Returns:
        One row a question: `question_id` from 1, `image`, `text`, `label`, `object`.

    Raises:
        SettingsError: If a setting is impossible.
        InputError: If too few pictures have enough objects, or a picture has so many
            that no absent one is left to ask for.

    Example:
        >>> scenes = {"1.jpg": ["cat", "sofa"], "2.jpg": ["cat", "oven"]}
        >>> table = build_pope_questions(
        ...     scenes, sampling="popular", pairs=1, n_images=None
        ... )
        >>> table.text.tolist()[:2]
        ['Is there a cat in the image?', 'Is there an oven in the image?']
    """
    _check_settings(sampling, pairs, n_images, template)
    drawn = _draw_images(objects, pairs=pairs, n_images=n_images, seed=seed)
    rng = random.Random(f"{sampling} {seed}")
    choose = _Sampler(drawn, sampling, rng).choose
    rows = []
    for image, present in drawn.items():
        taken = set(present)
        for there in present[:pairs]:
            absent = choose(image, there, taken)
            taken.add(absent)
            for name, label in ((there, "yes"), (absent, "no")):
                text = _ask(name, template)
                rows.append(
                    {"image": image, "text": text, "label": label, "object": name}
                )
    table = pd.DataFrame(rows)
    table.insert(0, "question_id", range(1, len(table) + 1))
    return table


class _Sampler:
    """Chooses absent objects; ties in the order in which objects are met."""

    def __init__(
        self, images: Objects, sampling: PopeSampling, rng: random.Random
    ) -> None:
        self._sampling, self._rng = sampling, rng
        self._count = Counter(name for names in images.values() for name in names)
        self._popular = [name for name, _ in self._count.most_common()]
        beside: dict[str, Counter[str]] = {name: Counter() for name in self._count}
        for names in images.values():
            for name in names:
                beside[name].update(other for other in names if other != name)
        self._beside = {
            name: [other for other, _ in counts.most_common()]
            for name, counts in beside.items()
        }

    def choose(self, image: str, there: str, taken: set[str]) -> str:
        """Choose an object that is neither in the picture nor asked about."""
        for name in self._ranked(there):
            if name not in taken:
                return name
        free = [name for name in self._count if name not in taken]
        if not free:
            msg = (
                f"{image!r}: expected an object that is absent and not asked about "
                f"yet, got none of the {len(self._count)} of these pictures; ask "
                "fewer pairs, or of more pictures"
            )
            raise InputError(msg)
        return self._rng.choice(free)

    def _ranked(self, there: str) -> Iterator[str]:
        if self._sampling == "popular":
            yield from self._popular
        elif self._sampling == "adversarial":
            yield from self._beside[there]


def _draw_images(
    objects: Objects, *, pairs: int, n_images: int | None, seed: int
) -> dict[str, list[str]]:
    each = {image: list(dict.fromkeys(names)) for image, names in objects.items()}
    enough = [image for image, names in each.items() if len(names) >= pairs]
    if not enough or len(enough) < (n_images or 0):
        msg = (
            f"expected {n_images or 'some'} pictures with at least {pairs} objects, "
            f"got {len(enough)} among {len(each)}; lower n_images or pairs"
        )
        raise InputError(msg)
    if n_images is not None:
        enough = random.Random(seed).sample(enough, n_images)
    return {image: each[image] for image in enough}


def _check_settings(
    sampling: str, pairs: int, n_images: int | None, template: str
) -> None:
    if sampling not in get_args(PopeSampling):
        expected = ", ".join(get_args(PopeSampling))
        raise SettingsError(f"sampling must be one of {expected}, got {sampling!r}")
    for name, value in (("pairs", pairs), ("n_images", n_images)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} must be at least 1, got {value}")
    if template.count("{}") != 1:
        msg = f"template must have one {{}} for the object, got {template!r}"
        raise SettingsError(msg)


def _ask(name: str, template: str) -> str:
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([aA]) \{\}", r"\1n {}", template)
    return template.replace("{}", name)
