"""Layouts of one grid: rows that the encoding counts, and squares of a fixed size."""

import torch

from eah_interp.lvlm.layouts.crops import find_shown_box
from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    ImagePart,
    Layout,
    Picture,
    number,
    tower_grid,
)


def lay_out_emu3(picture: Picture) -> Layout:
    """Emu3: rows of codes, each with an end-of-line code; sizes are after resizing."""
    height, width = picture.look_up("image_sizes")
    factor = 2 ** (len(picture.config.vq_config.channel_multiplier) - 1)
    rows, columns = height // factor, width // factor
    grid = number(rows, columns, stride=columns + 1)
    return Layout((rows * (columns + 1),), (ImagePart("image", grid, WHOLE),))


def lay_out_gemma4(picture: Picture) -> Layout:
    """Gemma 4: `image_position_ids` places patches, which the tower pools."""
    places = torch.as_tensor(picture.find_entry("image_position_ids"))
    pool = picture.config.vision_config.pooling_kernel_size
    columns, rows = ((places.amax(0) + 1) // pool).tolist()
    part = ImagePart("image", number(rows, columns), WHOLE)
    return Layout((rows * columns,), (part,))


def lay_out_chameleon(picture: Picture) -> Layout:
    """Chameleon: a square of codes of what the processor's centre crop keeps."""
    autoencoder = picture.config.vq_config
    side = autoencoder.resolution // 2 ** (len(autoencoder.channel_multiplier) - 1)
    box = find_shown_box(picture.processor, picture.size)
    return Layout((side * side,), (ImagePart("image", number(side, side), box),))


def lay_out_got(picture: Picture) -> Layout:
    """GOT-OCR2: a square for each page; two convolutions halve its sides."""
    rows, columns = (-(-side // 4) for side in tower_grid(picture.config))
    part = ImagePart("image", number(rows, columns), WHOLE)
    return Layout((rows * columns,), (part,))


def lay_out_padded(picture: Picture) -> Layout:
    """DeepSeek-VL and Janus: a square of patches of the picture padded to a square."""
    rows, columns = tower_grid(picture.config)
    part = ImagePart("image", number(rows, columns), _find_padded_box(picture))
    return Layout((rows * columns,), (part,))


def _find_padded_box(picture: Picture) -> Box | None:
    """Return the square around the resized picture, in fractions of the picture."""
    pictures = getattr(picture.processor, "image_processor", None)
    if pictures is None:
        return None
    if not pictures.do_pad:
        return WHOLE
    if picture.size is None:
        return None
    side = pictures.size["height"]
    scale = side / max(picture.size)
    height, width = (max(round(n * scale), pictures.min_size) for n in picture.size)
    x, y = (side - width) // 2, (side - height) // 2
    return -x / width, -y / height, (side - x) / width, (side - y) / height
