"""Images of any usual kind, read into RGB PIL images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from eah_interp.errors import InputError

ImageLike = Image.Image | np.ndarray | Tensor | str | Path
"""A PIL image, an array or tensor (height x width x channels, or channels first), or
the path of an image file."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""How a string ends that is an image's path even where text could stand."""


def is_image(value: object) -> bool:
    """Tell whether a value can only be meant as an image where text could stand too.

    A string is the path of an image where it ends like one (`SUFFIXES`), whether or
    not there is such a file, and text otherwise. Where an image is asked for, every
    string is a path.

    Example:
        >>> is_image("photo.JPG"), is_image("a cat"), is_image([1, 2])
        (True, False, False)
    """
    if isinstance(value, str):
        return value.lower().endswith(SUFFIXES)
    if isinstance(value, Image.Image | Path):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    if isinstance(value, Tensor):
        return value.ndim == 3
    return False


def is_images(value: object) -> bool:
    """Tell whether a value is an image, or a (nested) list of images.

    Raises:
        InputError: If images stand beside something else in a list.

    Example:
        >>> is_images([[Image.new("RGB", (2, 2))]]), is_images(["text"]), is_images([])
        (True, False, False)
    """
    if not isinstance(value, list | tuple):
        return is_image(value)
    found = [is_images(item) for item in value]
    if any(found) and not all(found):
        item = found.index(False)
        msg = (
            "expected a list of images, or of texts, got both: item "
            f"{item} is no image but {_shorten(value[item])}; for images and "
            "prompts, pass two arguments: (images, prompts)"
        )
        raise InputError(msg)
    return bool(found) and found[0]


def read_image(value: object) -> Image.Image:
    """Turn one image of any usual kind into an RGB PIL image.

    What is read is what transformers' `load_image` reads: turned as its EXIF
    orientation asks, transparency dropped. Images of more than 8 bits are scaled by
    their range: 16-bit ones from 0 to 65535, floating-point ones and arrays from 0 to
    1; other integer ones hold 0 to 255. Arrays of 16-bit integers, whose range nobody
    can tell, and of no other integers than 0 and 1 are refused. A leading axis of 1, 3
    or 4 is read as channels.

    Args:
        value: A PIL image, array, tensor or path.

    Returns:
        The decoded image, in RGB.

    Raises:
        InputError: If the file is missing, empty, truncated, too large or no image, an
            image is closed or has no pixels, or an array has an impossible shape, type
            or range.

    Example:
        >>> read_image(np.zeros((4, 6, 3), dtype=np.uint8)).size
        (6, 4)
    """
    if isinstance(value, str | Path):
        return _open(value)
    if isinstance(value, Image.Image):
        return _decode(value, "the image")
    if isinstance(value, Tensor):
        value = _to_array(value)
    if isinstance(value, np.ndarray):
        return _from_array(value)
    msg = (
        f"expected an image (PIL image, array, tensor or path), got "
        f"{type(value).__name__}"
    )
    raise InputError(msg)


def _open(name: str | Path) -> Image.Image:
    if "://" in str(name) or str(name).startswith("data:"):
        msg = (
            f"expected the path of an image file, got a URL, {_shorten(str(name))}; "
            "download it first"
        )
        raise InputError(msg)
    path = Path(name)
    try:
        found, empty = path.is_file(), path.is_file() and path.stat().st_size == 0
    except OSError as error:  # a name that is too long, a folder that is closed
        reason = f"no image file at {_shorten(str(name))}: {error.strerror}"
        raise InputError(f"{reason}; expected a path") from error
    if not found:
        msg = f"no image file at {_shorten(str(name))}: expected a file, found none"
        raise InputError(msg)
    if empty:
        msg = f"the image file {path} is empty (0 bytes)"
        raise InputError(msg)
    what = f"the image file {path}"
    try:
        image = Image.open(path)
    except Exception as error:  # as below
        raise _undecoded(what, error) from error
    with image:
        return _decode(image, what)


def _decode(image: Image.Image, what: str) -> Image.Image:
    if 0 in image.size:
        msg = f"{what} has no pixels: expected at least 1 x 1, got {image.size}"
        raise InputError(msg)
    form = image.format  # a turned image is a copy, which has none
    try:
        image = ImageOps.exif_transpose(image)
        wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
        if not wide:
            return image.convert("RGB")
        array = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise whatever their bytes provoke
        raise _undecoded(what, error) from error
    # Before Pillow 11, PNG of 16 bits came as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PNG"):
        array = np.round(array.astype(np.float64) / 257).astype(np.uint8)
    return _from_array(array)


def _undecoded(what: str, error: Exception) -> InputError:
    if isinstance(error, Image.DecompressionBombError):
        remedy = "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        return InputError(f"{what} is too large to be decoded: {error}; {remedy}")
    if "closed" in str(error):
        msg = f"{what} is closed: {error}; read it again, or pass a copy of it"
        return InputError(msg)
    reason = str(error) or type(error).__name__
    return InputError(f"{what} cannot be decoded (truncated or no image): {reason}")


def _to_array(tensor: Tensor) -> np.ndarray:
    try:
        held = tensor.detach().cpu()
        # NumPy has no bfloat16.
        return (held.float() if held.is_floating_point() else held).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        msg = f"expected an image as a dense tensor that holds numbers: {error}"
        raise InputError(msg) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype.kind not in "buif":
        msg = (
            "an image array must hold booleans, integers or real numbers, got "
            f"{array.dtype}"
        )
        raise InputError(msg)
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
    elif array.dtype != bool:
        _check_range(array)
    pixels = array.astype(np.uint8) * (255 if array.dtype == bool else 1)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def _check_range(array: np.ndarray) -> None:
    """Check that the integers of an array are those of an image of 8 bits.

    Raises:
        InputError: If they are not, or may be others: the image would be nearly black.
    """
    least, most = array.min(), array.max()
    if least < 0 or most > 255:
        msg = f"an integer image must hold values from 0 to 255, got {least} to {most}"
        raise InputError(msg)
    if array.dtype == np.uint16:
        msg = (
            f"an array of 16-bit integers from {least} to {most} may be an image of 8 "
            "bits, or a dark one of 16: pass array.astype(np.uint8), or for 16 bits "
            "array / 65535"
        )
        raise InputError(msg)
    if (least, most) == (0, 1):
        msg = (
            "an integer image whose values are 0 and 1 would be black: expected values "
            "from 0 to 255; for a mask pass array.astype(bool)"
        )
        raise InputError(msg)


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
