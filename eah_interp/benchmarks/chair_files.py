"""CHAIR's files: captions, and which objects are in which image."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_kind, check_path, check_text
from eah_interp.benchmarks.mentions import (
    ImageId,
    Lemmatize,
    Vocabulary,
    find_objects,
    image_id_of,
    join_pairs,
    load_lemmatizer,
)
from eah_interp.benchmarks.records import (
    Record,
    read_answer,
    read_records,
)
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.foreign_files import read_json
from eah_interp.indices import check_choice, check_integer, to_list

Repeats: TypeAlias = Literal["refuse", "count"]
"""What to do with several captions of one image."""

_IMAGE = ("image_id", "image")


@by_name
def read_captions(
    path: Path | str,
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    repeats: Repeats = "refuse",
) -> pd.DataFrame:
    """Read captions, whatever release wrote them.

    Objects `{"image_id": 226988, "caption": "..."}` as JSON lines or in an array;
    also with `image`, a file name such as `COCO_val2014_000000226988.jpg`, with
    `answer`, `response`, `output` or the like for the caption, or with `text` where
    there is none of these (POPE's release); and the form of 2018, one object whose
    `imgToEval` holds them.

    Args:
        path: The file.
        image_key: Where the image stands; `image_id` or `image` when None.
        caption_key: Where the caption stands; `caption` and so on when None.
        repeats: "refuse" a second caption of an image, which is mostly a file written
            twice over, or "count" each.

    Returns:
        One row a caption, in the file's order: `image_id`, `caption` and `place`, its
        `file:line`.

    Raises:
        InputError: If the file cannot be read, a caption or image is missing, an image
            stands twice, or two captions of one object differ.
    """
    path = check_path("path", path)
    check_choice("repeats", repeats, Repeats)
    for option, key in (("image_key", image_key), ("caption_key", caption_key)):
        if key is not None:
            check_text(option, key, error=SettingsError)
    images: list[ImageId] = []
    texts: list[str] = []
    places: list[str] = []
    first: dict[ImageId, str] = {}
    for record in _unpack(read_records(path)):
        names = _IMAGE if image_key is None else (image_key,)
        key = record.key(*names)
        if key is None:
            expected = " or ".join(map(repr, names))
            msg = (
                f"{record.place}: expected the image under {expected}, got the keys "
                f"{list(record.values)}; name it with image_key"
            )
            raise InputError(msg)
        image = image_id_of(record.values[key], place=record.place)
        if image_key is None:
            _check_image(record, image)
        if image in first and repeats == "refuse":
            msg = (
                f"{record.place}: image {image} has a caption in {first[image]} "
                "already; expected one each, or repeats='count'"
            )
            raise InputError(msg)
        first.setdefault(image, record.place)
        images.append(image)
        places.append(record.place)
        texts.append(
            read_answer(record, "caption")[0]
            if caption_key is None
            else record.text(caption_key)
        )
    return pd.DataFrame(
        {
            "image_id": pd.Series(images, dtype=object),
            "caption": texts,
            "place": places,
        }
    )


def _check_image(record: Record, image: ImageId) -> None:
    """Check that `image_id` and `image`, where both stand, are one image.

    Raises:
        InputError: If they are two: one may be a number in the file.
    """
    if not all(name in record.values for name in _IMAGE):
        return
    other = record.values["image"]
    found = image_id_of(other, place=record.place)
    if isinstance(found, str):  # in a folder, say
        found = image_id_of(found.replace("\\", "/").split("/")[-1], place=record.place)
    if isinstance(found, int) and isinstance(image, int) and found != image:
        msg = (
            f"{record.place}: expected one image, got image_id {image} and the image "
            f"{other!r}; name the key of the one that is meant with image_key"
        )
        raise InputError(msg)


def _unpack(records: list[Record]) -> list[Record]:
    """Take the captions out of the form of 2018; others as they are."""
    inside = records[0].values.get("imgToEval")
    if len(records) > 1 or not isinstance(inside, dict):
        return records
    place = f"{records[0].place}, imgToEval"
    odd = [key for key, values in inside.items() if not isinstance(values, dict)]
    if odd or not inside:
        msg = f"{place}: expected an object for each image, got {odd[:1] or 'none'}"
        raise InputError(msg)
    return [Record(values, f"{place}.{key}") for key, values in inside.items()]


# ---- Ground truth: COCO's annotations, or lists of objects.


URL = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
"""COCO's annotations of 2014, segmentations and captions."""

SPLITS = ("val", "train")

GroundTruth: TypeAlias = dict[ImageId, frozenset[str]]


@by_name
def read_ground_truth(
    path: Path | str,
    *,
    vocabulary: Vocabulary,
    images: Collection[ImageId] | None = None,
    year: int = 2014,
    lemmatize: Lemmatize | None = None,
) -> GroundTruth:
    """Read which objects are in which image.

    Of a folder of COCO's annotations, as CHAIR does (Rohrbach et al., 2018): the
    categories of `instances_*.json` and the objects that the captions of
    `captions_*.json` name, of val and train together; train is opened only if an image
    is not in val. Of a file, its own lists: one JSON object of image to objects, or
    POPE's `{"image": "...", "objects": [...]}` as JSON lines.

    Two ground truths are behind published numbers: objects in COCO's captions found
    by the same rules as in the captions that are scored, which is what is done here,
    or after `singularize` of the package `pattern` (`lemmatize=load_singularizer()`),
    as in the files that OPERA's script brings. They differ in 1.4 % of COCO's images.

    Args:
        path: Folder or file; not part of this package.
        vocabulary: Names of objects; every object is read as its group's first.
        images: Only these images, which for COCO saves minutes; all when None.
        year: Of COCO's files.
        lemmatize: What `load_lemmatizer` or `load_singularizer` returned, or another
            function of a text to its words; the first is loaded when needed and None.

    Returns:
        Image to its objects; none are an image's that has annotations but no
        objects.

    Raises:
        InputError: If a file is missing or is not as expected, or names an object that
            is not in the vocabulary.
        ExtraMissingError: If NLTK, or its data, is not installed, and `path` is a
            folder.
    """
    path, year = check_path("path", path), check_integer("year", year)
    check_kind("vocabulary", vocabulary, Vocabulary, expected="a Vocabulary")
    if lemmatize is not None and not callable(lemmatize):
        got = show_value(lemmatize)
        raise InputError(f"lemmatize must be a function of a text, got {got}")
    if images is not None:
        listed = list(images) if isinstance(images, Set) else to_list(images)
        if listed is None or not all(isinstance(one, str | int) for one in listed):
            got = show_value(images)
            raise InputError(f"images must be their names or numbers, got {got}")
        images = listed
    if not path.is_dir():
        return _keep(_read_lists(path, vocabulary), images)
    lemmatize = load_lemmatizer() if lemmatize is None else lemmatize
    truth: GroundTruth = {}
    wanted = None if images is None else set(images)
    for split in SPLITS:
        if wanted is None or wanted - set(truth):
            files = [
                _require(path, f"{kind}_{split}{year}.json")
                for kind in ("instances", "captions")
            ]
            truth |= _read_split(
                *files, vocabulary=vocabulary, wanted=wanted, lemmatize=lemmatize
            )
    return truth


def _read_split(
    instances: Path,
    captions: Path,
    *,
    vocabulary: Vocabulary,
    wanted: set[ImageId] | None,
    lemmatize: Lemmatize,
) -> GroundTruth:
    found: defaultdict[ImageId, set[str]] = defaultdict(set)
    content = _read_annotations(instances, "categories", "images", "annotations")
    names: dict[int, str] = {}
    for category in _list_entries(content, "categories", path=instances):
        number = _number_in(category, "id")
        name = category.text("name")
        if number in names:
            msg = f"{category.place}: expected each category once, got {number} again"
            raise InputError(msg)
        names[number] = _object_of(name, vocabulary, place=category.place)
    for image, record in _of_images(content, wanted, path=instances):
        if record is None:
            found[image] |= set()
            continue
        number = _number_in(record, "category_id")
        if number not in names:
            msg = (
                f"{record.place}: expected a category_id of {len(names)} categories, "
                f"got {number}"
            )
            raise InputError(msg)
        found[image].add(names[number])
    content = _read_annotations(captions, "images", "annotations")
    for image, record in _of_images(content, wanted, path=captions):
        text = "" if record is None else record.text("caption")
        words = join_pairs(lemmatize(text), vocabulary) if text else []
        found[image].update(find_objects(words, vocabulary))
    return {image: frozenset(names) for image, names in found.items()}


def _of_images(
    content: Mapping[str, Any], wanted: set[ImageId] | None, *, path: Path
) -> Iterator[tuple[ImageId, Record | None]]:
    """Yield every image once without, and once for each of its annotations."""
    for record in _list_entries(content, "images", path=path):
        image = _number_in(record, "id")
        if wanted is None or image in wanted:
            yield image, None
    for record in _list_entries(content, "annotations", path=path):
        image = _number_in(record, "image_id")
        if wanted is None or image in wanted:
            yield image, record


def _list_entries(
    content: Mapping[str, Any], key: str, *, path: Path
) -> Iterator[Record]:
    """Yield the entries of a list; COCO's files are one line, so each by its number."""
    for number, entry in enumerate(content[key]):
        place = f"{path}: {key}[{number}]"
        if not isinstance(entry, dict):
            msg = f"{place}: expected an object {{...}}, got {str(entry)[:60]!r}"
            raise InputError(msg)
        yield Record(entry, place)


def _number_in(record: Record, key: str) -> int:
    number = record.values.get(key)
    if not isinstance(number, int) or isinstance(number, bool):
        got = f"got {str(number)[:60]!r}" if key in record.values else "got none"
        msg = f"{record.place}: expected a whole number under {key!r}, {got}"
        raise InputError(msg)
    return number


def _read_annotations(path: Path, *keys: str) -> Mapping[str, Any]:
    found = read_json(path)
    content: Mapping[str, Any] = found if isinstance(found, dict) else {}
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        msg = f"{path}: expected COCO annotations, got no {missing}; they are at {URL}"
        raise InputError(msg)
    return content


def _require(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        others = sorted(
            found.name
            for kind in ("instances", "captions")
            for found in folder.glob(f"{kind}_*.json")
        )
        msg = (
            f"expected COCO's {name} in {folder}, got {others or 'no annotations'}; "
            f"those of 2014 are at {URL} (folder annotations), year=... reads others"
        )
        raise InputError(msg)
    return path


def _read_lists(path: Path, vocabulary: Vocabulary) -> GroundTruth:
    if not path.exists():
        msg = (
            f"cannot read {path}: no such file or folder; expected a folder of COCO's "
            f"annotations ({URL}) or a file of objects by image"
        )
        raise InputError(msg)
    return {
        image_id_of(image, place=place): frozenset(
            _object_of(name, vocabulary, place=place) for name in names
        )
        for image, names, place in _lists(path)
    }


def _lists(path: Path) -> Iterator[tuple[Any, list[str], str]]:
    """Yield image, objects and where that is said."""
    records = read_records(path)
    by_image = len(records) == 1 and "objects" not in records[0].values
    for record in records:
        if by_image:
            items: list[tuple[Any, Any]] = list(record.values.items())
        else:
            key = record.key("image_id", "image") or "image"
            items = [(record.values.get(key), record.values.get("objects"))]
        for image, names in items:
            if not isinstance(names, list) or not all(
                isinstance(n, str) for n in names
            ):
                msg = (
                    f"{record.place}: expected a list of objects of image {image!r}, "
                    f"got {str(names)[:60]}"
                )
                raise InputError(msg)
            yield image, names, record.place


def _object_of(name: str, vocabulary: Vocabulary, *, place: str) -> str:
    if name not in vocabulary.objects:
        msg = (
            f"{place}: expected objects of the synonym list, got {name[:60]!r}; add a "
            "line that begins with it to the list"
        )
        raise InputError(msg)
    return vocabulary.objects[name]


def _keep(truth: GroundTruth, images: Collection[ImageId] | None) -> GroundTruth:
    if images is None:
        return truth
    return {image: truth[image] for image in set(images) & set(truth)}
