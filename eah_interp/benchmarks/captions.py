"""Caption files, as releases write them."""

from pathlib import Path
from typing import Literal, TypeAlias

import pandas as pd

from eah_interp.benchmarks.images import ImageId, image_id_of
from eah_interp.benchmarks.records import Record, read_records
from eah_interp.errors import InputError

Repeats: TypeAlias = Literal["refuse", "count"]
"""What to do with several captions of one picture."""

_IMAGE, _TEXT = ("image_id", "image"), ("caption", "text")


def read_captions(
    path: Path | str,
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    repeats: Repeats = "refuse",
) -> pd.DataFrame:
    """Read captions, whatever release wrote them.

    Objects `{"image_id": 226988, "caption": "..."}` as JSON lines or in an array;
    also with `image`, a file name such as `COCO_val2014_000000226988.jpg`, and with
    `text` for the caption (POPE's release); and the form of 2018, one object whose
    `imgToEval` holds them.

    Args:
        path: The file.
        image_key: Where the picture stands; `image_id` or `image` when None.
        caption_key: Where the caption stands; `caption` or `text` when None.
        repeats: "refuse" a second caption of a picture, which is mostly a file written
            twice over, or "count" each.

    Returns:
        One row a caption, in the file's order: `image_id` and `caption`.

    Raises:
        InputError: If the file cannot be read, a caption or picture is missing, or a
            picture stands twice.
    """
    images: list[ImageId] = []
    texts: list[str] = []
    first: dict[ImageId, str] = {}
    for record in _unpack(read_records(path)):
        names = _IMAGE if image_key is None else (image_key,)
        key = record.key(*names)
        if key is None:
            expected = " or ".join(map(repr, names))
            msg = (
                f"{record.place}: expected the picture under {expected}, got the keys "
                f"{list(record.values)}; name it with image_key"
            )
            raise InputError(msg)
        image = image_id_of(record.values[key], place=record.place)
        if image in first and repeats == "refuse":
            msg = (
                f"{record.place}: picture {image} has a caption in {first[image]} "
                "already; expected one each, or repeats='count'"
            )
            raise InputError(msg)
        first.setdefault(image, record.place)
        images.append(image)
        texts.append(record.text(*(_TEXT if caption_key is None else (caption_key,))))
    return pd.DataFrame({"image_id": pd.Series(images, dtype=object), "caption": texts})


def _unpack(records: list[Record]) -> list[Record]:
    """Take the captions out of the form of 2018; others as they are."""
    inside = records[0].values.get("imgToEval")
    if len(records) > 1 or not isinstance(inside, dict):
        return records
    place = f"{records[0].place}, imgToEval"
    odd = [key for key, values in inside.items() if not isinstance(values, dict)]
    if odd or not inside:
        msg = f"{place}: expected an object for each picture, got {odd[:1] or 'none'}"
        raise InputError(msg)
    return [Record(values, f"{place}.{key}") for key, values in inside.items()]
