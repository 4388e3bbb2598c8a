"""Images of any usual kind, read into RGB PIL images."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eah_interp.errors import InputError

ImageLike = Image.Image | np.ndarray | Tensor | str | Path
"""A PIL image, an array or tensor (height x width x channels, or channels first), or
the path of an image file."""


def is_image(value: object) -> bool:
    """Whether a positional argument can only be meant as an image.

    A string is taken for text here (nnsight's meaning); it is an image path only
    where an image is asked for.

    Example:
        >>> is_image(Image.new("RGB", (2, 2))), is_image("a cat"), is_image([1, 2])
        (True, False, False)
    """
    if isinstance(value, Image.Image | Path):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    if isinstance(value, Tensor):
        return value.ndim == 3
    return False


def is_images(value: object) -> bool:
    """Whether a positional argument is an image, or a (nested) list of images.

    Example:
        >>> is_images([[Image.new("RGB", (2, 2))]]), is_images(["text"]), is_images([])
        (True, False, False)
    """
    if isinstance(value, list | tuple):
        return bool(value) and all(is_images(item) for item in value)
    return is_image(value)


def read_image(value: object) -> Image.Image:
    """Turn one image of any usual kind into an RGB PIL image.

    Floating-point arrays are taken as 0 to 1, integer ones as 0 to 255. A leading
    axis of 1, 3 or 4 is read as channels.

    Args:
        value: A PIL image, array, tensor or path.

    Returns:
        The decoded image, in RGB.

    Raises:
        InputError: If the file is missing, empty, truncated or no image, or an array
            has an impossible shape or range.

    Example:
        >>> read_image(np.zeros((4, 6, 3), dtype=np.uint8)).size
        (6, 4)
    """
    if isinstance(value, str | Path):
        return _open(Path(value))
    if isinstance(value, Image.Image):
        try:
            return value.convert("RGB")
        except (OSError, SyntaxError) as error:
            msg = f"the image cannot be decoded: {error}; the file may be truncated"
            raise InputError(msg) from error
    if isinstance(value, Tensor):
        value = (
            value.detach().cpu().float().numpy()
            if value.is_floating_point()
            else (value.detach().cpu().numpy())
        )
    if isinstance(value, np.ndarray):
        return _from_array(value)
    msg = (
        f"expected an image (PIL image, array, tensor or path), got "
        f"{type(value).__name__}"
    )
    raise InputError(msg)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        msg = f"no image file at {path}: expected a file, found none"
        raise InputError(msg)
    if path.stat().st_size == 0:
        msg = f"the image file {path} is empty (0 bytes)"
        raise InputError(msg)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        msg = (
            f"the image file {path} cannot be decoded (truncated or no image): {error}"
        )
        raise InputError(msg) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 2:
        array = array[:, :, None]
    if (
        array.ndim == 3
        and array.shape[-1] not in (1, 3, 4)
        and array.shape[0] in (1, 3, 4)
    ):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        msg = (
            "an image array must be height x width (x 1, 3 or 4 channels), got shape "
            f"{array.shape}"
        )
        raise InputError(msg)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            msg = (
                "a floating-point image must hold values from 0 to 1, got "
                f"{array.min():.3g} to {array.max():.3g}; divide by 255, or undo the "
                "normalisation (pass pixel_values=... for ready-made model inputs)"
            )
            raise InputError(msg)
        array = np.round(array * 255)
    elif array.dtype != bool and (array.min() < 0 or array.max() > 255):
        msg = (
            f"an integer image must hold values from 0 to 255, got {array.min()} to "
            f"{array.max()}"
        )
        raise InputError(msg)
    pixels = array.astype(np.uint8) * (255 if array.dtype == bool else 1)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
