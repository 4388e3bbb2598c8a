"""What a study asks: images with prompts, and what is true of them."""

import functools
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from PIL import Image

from eah_interp.arguments import (
    Named,
    by_name,
    check_flag,
    check_limit,
    check_mapping,
    check_path,
    check_text,
)
from eah_interp.benchmarks.metrics import Task
from eah_interp.benchmarks.pope_files import read_pope_questions
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import to_int, to_list

TOY = "toy:"

MOST_SCENES = 100_000
"""How many scenes a study may list: drawing so many takes a minute or two."""


@dataclass(frozen=True)
class Item(metaclass=Named):
    """One image with one prompt.

    Attributes:
        id: Its name in the results; no two items share one.
        task: What is asked.
        image: A file; a file in an archive, `photos.zip/a.jpg`; or `toy:test:17`, a
            scene of the toy world.
        prompt: The prompt, suffixes and all, as the model gets it: a text, or the
            messages of a chat, kept as a tuple. The image goes to their one place
            `{"type": "image"}`, or before what the user says first.
        label: What a yes/no question's answer should be.
        kind: How the question was chosen: POPE's `random`, `popular`, `adversarial`.
        object: The object that is asked for.
        truth: The objects that are in the image, where that is known.
        cluster: Items of one image share it; intervals resample images. Where it is
            empty, items of the same image are one cluster.
        columns: What else a user's table says of it; results are joined to it.
    """

    id: str
    task: Task
    image: str
    prompt: str | Sequence[Mapping[str, Any]]
    label: bool | None = None
    kind: str = ""
    object: str = ""
    truth: tuple[str, ...] = field(default=())
    cluster: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value; messages are kept as JSON would give them back."""
        is_text = isinstance(self.prompt, str)
        texts = ("id", "image", "prompt", "kind", "object", "cluster")
        for name in texts if is_text else (t for t in texts if t != "prompt"):
            check_text(f"an item's {name}", getattr(self, name))
        listed = isinstance(self.truth, list | tuple)
        right = {
            "task": isinstance(self.task, str) and self.task in get_args(Task),
            "label": self.label is None or isinstance(self.label, bool),
            "truth": listed and all(isinstance(name, str) for name in self.truth),
        }
        expected = {
            "task": "yes_no, caption or choice",
            "label": "True, False or None",
            "truth": "a list of names",
        }
        for name in (name for name, is_right in right.items() if not is_right):
            got = show_value(getattr(self, name))
            raise InputError(f"an item's {name} must be {expected[name]}, got {got}")
        check_mapping("an item's columns", self.columns, error=InputError)
        if not is_text:
            object.__setattr__(self, "prompt", self._check_chat())

    def _check_chat(self) -> tuple[Any, ...]:
        """Check a prompt of messages, and copy it as JSON would give it back."""
        from eah_interp.lvlm.messages import (
            EMPTY,
            are_messages,
            check_messages,
            list_places,
        )

        if not are_messages(self.prompt):
            got = show_value(self.prompt)
            raise InputError(f"an item's prompt must be a text or messages, got {got}")
        chat = check_messages(self.prompt)  # type: ignore[arg-type]
        places = list_places(chat, None)
        if len(places) > 1 or any(place is not EMPTY for place in places):
            msg = (
                f"the messages of item {self.id!r} have {len(places)} images: expected "
                "one {'type': 'image'} without an image, or none; the item's own image "
                "is shown there"
            )
            raise InputError(msg)
        try:
            plain = json.loads(json.dumps(chat))
        except TypeError as error:
            msg = f"the messages of item {self.id!r} cannot be saved: {error}"
            raise InputError(msg) from error
        return tuple(plain)

    def __hash__(self) -> int:
        """Hash the item by its name: messages are dicts."""
        return hash((self.id, self.image))

    @property
    def prompt_text(self) -> str:
        """The prompt in one string: messages as a line each, after their roles.

        Example:
            >>> chat = [{"role": "user", "content": "Is there a dog?"}]
            >>> Item("1", "yes_no", "a.png", chat).prompt_text
            'user: Is there a dog?'
        """
        if isinstance(self.prompt, str):
            return self.prompt
        from eah_interp.lvlm.messages import text_of

        return "\n".join(f"{one['role']}: {text_of(one)}" for one in self.prompt)

    def to_dict(self) -> dict[str, Any]:
        """Write the item as a mapping of plain values."""
        values = asdict(self) | {"truth": list(self.truth)}
        if not isinstance(self.prompt, str):
            values["prompt"] = list(values["prompt"])
        if not self.columns:  # as items were written before they had any
            del values["columns"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Item":
        """Make an item from a mapping.

        Raises:
            InputError: If it is none, or a key is missing, unknown or of another kind.
        """
        values = dict(check_mapping("an item", values, error=InputError))
        known = [one.name for one in fields(cls)]
        needed = ["id", "task", "image", "prompt"]
        if set(values) - set(known) or set(needed) - set(values):
            msg = (
                f"an item has {', '.join(needed)}, and may have "
                f"{', '.join(n for n in known if n not in needed)}, got "
                f"{', '.join(values) or 'nothing'}"
            )
            raise InputError(msg)
        truth = values.get("truth", ())
        listed = tuple(truth) if isinstance(truth, list) else truth
        return cls(**{**values, "truth": listed})


def open_image(image: str) -> Any:
    """Open an item's image.

    Args:
        image: A file, or `toy:test:17`.

    Returns:
        What a model's `encode` takes.

    Raises:
        InputError: If it cannot be read.
    """
    if image.startswith(TOY):
        from eah_interp.toy.scenes import draw_scene

        found = re.fullmatch(r"toy:(train|validation|test):([0-9]{1,9})", image)
        if found is None:
            msg = f"expected a scene such as toy:test:17, got {image!r:.60}"
            raise InputError(msg)
        split, seed = found.groups()
        return draw_scene(int(seed), split=split).pil()  # type: ignore[arg-type]
    from eah_interp.lvlm.images import read_image

    found_in = find_archive(image)
    if found_in is None:
        return read_image(Path(image))
    content = io.BytesIO(_read_member(*found_in))
    try:
        opened = Image.open(content)
    except (OSError, ValueError) as error:
        msg = f"{image} is no image that can be read: {error}"
        raise InputError(msg) from error
    return read_image(opened)


MOST_BYTES = 200_000_000
"""How large a file in an archive may say that it is."""


def find_archive(image: str) -> tuple[Path, str] | None:
    """Find the archive that an image's path leads into, and its name there.

    Example:
        >>> find_archive("photos/a.jpg") is None
        True
    """
    path = Path(image)
    for parent in path.parents if ".zip" in image.lower() else ():
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def _read_member(archive: Path, name: str) -> bytes:
    """Read a file of an archive.

    Raises:
        InputError: If it is not there, too large, or the archive cannot be read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            size = opened.getinfo(name).file_size
            if size > MOST_BYTES:
                msg = (
                    f"{archive}: {name} has {size} bytes, expected {MOST_BYTES} at most"
                )
                raise InputError(msg)
            with opened.open(name) as file:
                return file.read(MOST_BYTES)
    except KeyError as error:
        raise InputError(f"{archive} has no file {name!r}") from error
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {name} in {archive}: {error}") from error


@by_name
def toy_items(
    n_scenes: int,
    *,
    split: Literal["train", "validation", "test"] = "test",
    questions: bool = True,
    captions: bool = True,
    samplings: Sequence[str] = ("random", "popular", "adversarial"),
) -> tuple[Item, ...]:
    """List questions and captions about scenes of the toy world.

    Args:
        n_scenes: Scenes, with seeds 0, 1, 2...
        split: Scenes of which split.
        questions: A yes and a no question of each sampling for every scene.
        captions: A caption of every scene.
        samplings: How absent objects are chosen.

    Returns:
        The items: all questions, then all captions.

    Raises:
        SettingsError: If nothing is asked.

    Example:
        >>> items = toy_items(2, samplings=("random",))
        >>> [(item.id, item.label) for item in items][:3]
        [('0/random/yes', True), ('0/random/no', False), ('1/random/yes', True)]
    """
    from eah_interp.toy.language import prompt_for, questions_for
    from eah_interp.toy.scenes import draw_scene

    for name, value in (("questions", questions), ("captions", captions)):
        check_flag(name, value)
    number = to_int(n_scenes)
    if number is None or not 1 <= number <= MOST_SCENES or not (questions or captions):
        msg = (
            f"a study asks something: expected n_scenes of 1 to {MOST_SCENES}, and "
            "questions or "
            f"captions, got n_scenes={show_value(n_scenes)}, questions={questions}, "
            f"captions={captions}"
        )
        raise SettingsError(msg)
    if to_list(samplings) is None:
        got = show_value(samplings)
        raise SettingsError(f"samplings must be a list of names, got {got}")
    asked: list[Item] = []
    told: list[Item] = []
    for seed in range(number):
        scene = draw_scene(seed, split=split)
        about = Item(
            id=f"{seed}/caption",
            task="caption",
            image=f"{TOY}{split}:{seed}",
            prompt="Describe the image.",
            truth=scene.objects,
            cluster=str(seed),
        )
        if captions:
            told.append(about)
        for sampling in samplings if questions else ():
            for question in questions_for(scene, sampling=sampling):  # type: ignore[arg-type]
                answer = "yes" if question.answer else "no"
                asked.append(
                    replace(
                        about,
                        id=f"{seed}/{sampling}/{answer}",
                        task="yes_no",
                        prompt=prompt_for(question.text),
                        label=question.answer,
                        kind=sampling,
                        object=question.object,
                    )
                )
    return (*asked, *told)


@by_name
def pope_items(
    questions: str | Path,
    images: str | Path,
    *,
    suffix: str = "",
    kind: str = "",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List POPE's questions, as `benchmarks.read_pope_questions` reads them.

    Args:
        questions: The file. Each question has to name its image; one without a
            `question_id` is called by its place, counted from 1.
        images: The folder with the images.
        suffix: Put after every question, such as " Please answer yes or no."; stated
            in the manifest as part of the prompt.
        kind: `random`, `popular` or `adversarial`; the file's name when empty.
        limit: Only so many first questions.

    Returns:
        The items, in the order of the file.

    Raises:
        InputError: If the file cannot be read, or a question in it; its line is named.
    """
    questions = check_path("questions", questions)
    images = check_path("images", images)
    check_text("suffix", suffix)
    check_text("kind", kind)
    table = read_pope_questions(questions, limit=limit, with_images=True)
    keys = table.get("question_id", range(1, len(table) + 1))
    name = kind or questions.stem
    asked = zip(keys, table.image, table.text, table.label, strict=True)
    return tuple(
        Item(
            id=f"{name}/{key}",
            task="yes_no",
            image=str(images / image),
            prompt=text + suffix,
            label=label == "yes",
            kind=name,
            cluster=image,
        )
        for key, image, text, label in asked
    )


@by_name
def caption_items(
    images: str | Path | Sequence[str | Path],
    *,
    prompt: str | Sequence[Mapping[str, Any]] = "Describe the image.",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List images to be described.

    Args:
        images: A folder, a pattern such as `photos/*.jpg`, an archive (.zip), or files.
        prompt: What is asked: a text, or messages.
        limit: Only so many first images, by name in a folder.

    Returns:
        The items.

    Raises:
        InputError: If there is no image, or an argument is no path or text.
        SettingsError: If the limit is no number of 0 or more.
    """
    kinds = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
    limit = check_limit("limit", limit)
    listed = to_list(images)
    if listed is None:
        found = list_files(check_path("images", images))
        files = [path for path in found if path.suffix.lower() in kinds]
    else:
        files = [check_path("images", image) for image in listed]
    if not files:
        msg = f"no images in {show_value(images)}: expected {', '.join(sorted(kinds))}"
        raise InputError(msg)
    return tuple(
        Item(
            id=f"{file.stem}/caption",
            task="caption",
            image=str(file),
            prompt=prompt,
            cluster=file.name,
        )
        for file in files[:limit]
    )


def list_files(place: Path) -> list[Path]:
    """List the files of a folder, of an archive, or that a pattern matches, by name.

    Raises:
        InputError: If an archive cannot be read.
    """
    wild = [n for n, part in enumerate(place.parts) if any(c in part for c in "*?[")]
    if wild:
        base = Path(*place.parts[: wild[0]])
        try:
            return sorted(base.glob("/".join(place.parts[wild[0] :])))
        except ValueError as error:
            raise InputError(f"{place} is no pattern of files: {error}") from error
    if place.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(place) as opened:
                names = [one.filename for one in opened.infolist() if not one.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"cannot read the archive {place}: {error}") from error
        return sorted(place / name for name in names)
    return sorted(place.glob("*"))


def list_images(items: Sequence[Item]) -> tuple[str, ...]:
    """List the image files that items name, each once; toy scenes are none.

    Example:
        >>> named = ["a.png", "./a.png", "toy:test:3", "b.png"]
        >>> list_images([Item(str(n), "caption", i, "?") for n, i in enumerate(named)])
        ('a.png', 'b.png')
    """
    images = (os.path.normpath(i.image) for i in items if not i.image.startswith(TOY))
    return tuple(dict.fromkeys(images))


def hash_image(image: str) -> str | None:
    """Hash an image file's bytes (SHA-256); None if it cannot be read."""
    try:
        found_in = find_archive(image)
        if found_in is not None:
            return hashlib.sha256(_read_member(*found_in)).hexdigest()
        path = Path(image).resolve()
        stat = path.stat()
        # A clock that went back can give a new file an old one's time of change.
        changed = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        return _hash_bytes(path, stat.st_size, changed)
    except (OSError, ValueError, InputError):  # ValueError: no name of a file
        return None


@functools.cache
def _hash_bytes(path: Path, size: int, changed: tuple[int, ...]) -> str:
    """Hash a file; one of the same size and times of change is not read again."""
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cluster_items(items: pd.DataFrame) -> pd.Series:
    """Return what the items of a table belong to, so that intervals resample images.

    An item without a cluster shares the one that another item of its image names; if
    none does, the image itself.

    Args:
        items: With the columns `image` and `cluster`.

    Example:
        >>> table = pd.DataFrame({"image": ["a.png", "./a.png", "b.png", "b.png"]})
        >>> table["cluster"] = ["", "", "b", ""]
        >>> cluster_items(table).tolist()
        ['a.png', 'a.png', 'b', 'b']
    """
    # "./a.png" and "a.png" are one image.
    images = [os.path.normpath(str(image)) for image in items.image]
    pairs = list(zip(images, items.cluster, strict=True))
    said = {image: cluster for image, cluster in reversed(pairs) if cluster}
    found = [cluster or said.get(image, image) for image, cluster in pairs]
    return pd.Series(found, index=items.index, name="cluster", dtype="string")


def check_items(items: Sequence[Item]) -> None:
    """Check that there are items, and that each has a name of its own.

    Raises:
        InputError: If not.
    """
    listed = to_list(items)
    if listed is None or not all(isinstance(item, Item) for item in listed):
        raise InputError(f"items must be a list of Items, got {show_value(items)}")
    if not listed:
        msg = "a study needs at least 1 item, got none"
        raise InputError(msg)
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            msg = f"two items are called {item.id!r}: expected a name for each"
            raise InputError(msg)
        seen.add(item.id)
