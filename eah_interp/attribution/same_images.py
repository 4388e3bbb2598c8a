"""Which items show the same image: a key for each image, made of its pixels."""

import hashlib
from typing import Any

from torch import Tensor

from eah_interp.lvlm.inputs import Encoding


def name_image(image: Any) -> str:
    """Make a key of what an image shows: the same for the same pixels."""
    shape = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(shape + image.tobytes(), digest_size=8).hexdigest()


def name_lines(model: Any, encoding: Encoding) -> list[tuple[str, ...]]:
    """Make a key of each row's pixels; none where they cannot be told apart."""
    ids, pixels = encoding["input_ids"], encoding.get("pixel_values")
    n_rows, token = ids.shape[0], model.anatomy.image_token_id
    unknown: list[tuple[str, ...]] = [()] * n_rows
    if not isinstance(pixels, Tensor) or pixels.is_meta or token is None:
        return unknown
    if pixels.shape[0] != n_rows or not bool((ids == token).any(1).all()):
        return unknown
    lines = pixels.detach().float().cpu().contiguous().numpy()
    keys = [hashlib.blake2b(line.tobytes(), digest_size=8) for line in lines]
    return [(key.hexdigest(),) for key in keys]
