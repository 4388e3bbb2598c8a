"""Layouts of the LLaVA families and PaliGemma, and what of the picture they show.

The arithmetic follows transformers' own, rounding included (`unpad_image`,
`pack_image_features` and the image processors of LLaVA, LLaVA-NeXT and
LLaVA-OneVision), but on numbers of tokens and pixels instead of features.
"""

import math

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution

from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    ImagePart,
    Layout,
    Picture,
    lay_out_pixtral,
    number,
    pair,
    tower_grid,
)

NO_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")
"""Vision towers whose first token is a patch."""


def find_shown_box(
    processor: ProcessorMixin | None, size: tuple[int, int] | None
) -> Box | None:
    """Return the part of a picture that a resizing and cropping processor keeps.

    Args:
        processor: Its image processor may pad to a square, resize, and crop the centre.
        size: Height and width of the original picture.

    Returns:
        The region, beyond 0 and 1 where padding is added; None where it is not known.
    """
    pictures = getattr(processor, "image_processor", None)
    if pictures is None:
        return None
    crops = getattr(pictures, "do_center_crop", False)
    pads = getattr(pictures, "do_pad", False)
    if not crops and not pads:
        return WHOLE
    if size is None or (pads and not hasattr(pictures, "pad_to_square")):
        return None
    height, width = size
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if pads:  # the picture in the middle of a square
        side = max(height, width)
        left, top = -float((side - width) // 2), -float((side - height) // 2)
        right, bottom = left + side, top + side
        height = width = side
    if crops:
        resized = _resize(height, width, pictures)
        if resized is None:
            return None
        height, width = resized
        x_scale, y_scale = (right - left) / width, (bottom - top) / height
        crop = pictures.crop_size
        x, y = (width - crop["width"]) // 2, (height - crop["height"]) // 2
        left, top = left + x * x_scale, top + y * y_scale
        right, bottom = left + crop["width"] * x_scale, top + crop["height"] * y_scale
    return left / size[1], top / size[0], right / size[1], bottom / size[0]


def _resize(
    height: int, width: int, pictures: BaseImageProcessor
) -> tuple[int, int] | None:
    """Return a picture's size after the resize step; None for rules unknown here."""
    if not getattr(pictures, "do_resize", False):
        return height, width
    size = pictures.size
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    short = size.get("shortest_edge")
    if not short or size.get("longest_edge"):
        return None
    long = int(short * max(height, width) / min(height, width))
    return (short, long) if height <= width else (long, short)


def _trim(box: Box | None, config: PreTrainedConfig) -> Box | None:
    """Cut off the right and bottom pixels that make no whole patch.

    SigLIP's 384 pixels hold 27 patches of 14, and 6 pixels that the model never sees.
    """
    if box is None:
        return None
    rows, columns = tower_grid(config)
    height, width = pair(config.vision_config.image_size)
    patch_height, patch_width = pair(config.vision_config.patch_size)
    left, top, right, bottom = box
    right = left + (right - left) * columns * patch_width / width
    bottom = top + (bottom - top) * rows * patch_height / height
    return left, top, right, bottom


def lay_out_square(picture: Picture) -> Layout:
    """PaliGemma: one grid of the tower's patches."""
    rows, columns = tower_grid(picture.config)
    box: Box | None = WHOLE
    if picture.processor is not None:
        box = find_shown_box(picture.processor, picture.size)
    part = ImagePart("image", number(rows, columns), _trim(box, picture.config))
    return Layout((rows * columns,), (part,))


def lay_out_llava(picture: Picture) -> Layout:
    """LLaVA and ViP-LLaVA: one grid; a class token is dropped, or comes first."""
    vision = picture.config.vision_config
    if vision.model_type == "pixtral":
        return lay_out_pixtral(picture)
    pixels = picture.encoding.get("pixel_values")
    size = vision.image_size if pixels is None else tuple(pixels.shape[-2:])
    height, width = pair(size)
    patch_height, patch_width = pair(vision.patch_size)
    rows, columns = height // patch_height, width // patch_width
    classes = 0 if vision.model_type in NO_CLASS_TOKEN else 1
    strategy = getattr(picture.config, "vision_feature_select_strategy", "default")
    if strategy == "default":  # the first token of the tower is dropped
        count = rows * columns + classes - 1
        start = 0
    else:
        count = rows * columns + classes
        start = classes
    if count < rows * columns:  # the first patch is lost: no rectangle is left
        return Layout((count,))
    grid = number(rows, columns, start=start)
    box = _trim(find_shown_box(picture.processor, picture.size), picture.config)
    return Layout((count,), (ImagePart("image", grid, box),))


def lay_out_llava_next(picture: Picture) -> Layout:
    """LLaVA-NeXT: base view, then the crops as one grid with a newline on each row."""
    height, width = picture.look_up("image_sizes")
    return _lay_out_anyres(picture, (height, width), max_crops=None)


def lay_out_onevision(picture: Picture) -> Layout:
    """LLaVA-OneVision: as LLaVA-NeXT, shrunk where crops are many; or base alone."""
    height, width = picture.look_up("image_sizes")
    in_row = picture.encoding.get("batch_num_images")
    if in_row is not None:
        counts = [int(count) for count in in_row for _ in range(int(count))]
        if counts[picture.index] > 1:  # several pictures in the prompt: no crops
            rows, columns = tower_grid(picture.config)
            box = _trim(WHOLE, picture.config)
            base = ImagePart("base", number(rows, columns), box)
            return Layout((rows * columns + 1,), (base,))
    ratio = picture.config.vision_aspect_ratio
    return _lay_out_anyres(
        picture, (height, width), max_crops=int(ratio.removeprefix("anyres_max_"))
    )


def _lay_out_anyres(
    picture: Picture, size: tuple[int, int], *, max_crops: int | None
) -> Layout:
    """Lay out base view and crops of a picture of the given height and width.

    The crops are one grid of equal cells, as the model itself takes them. Where a
    crop has pixels that make no whole patch (`_trim`), cells are off by up to as many.
    """
    side, _ = tower_grid(picture.config)
    pixels, _ = pair(picture.config.vision_config.image_size)
    canvas = select_best_resolution(size, picture.config.image_grid_pinpoints)
    rows, columns = canvas[0] // pixels * side, canvas[1] // pixels * side
    height, width = size
    x_cut = y_cut = 0
    if width / height > columns / rows:
        y_cut = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        x_cut = (columns - int(round(width * (rows / height), 7))) // 2
    patch = pixels / side
    box = _find_canvas_box(size, canvas, (x_cut * patch, y_cut * patch))
    rows, columns = rows - 2 * y_cut, columns - 2 * x_cut
    if max_crops is not None:
        shrink = math.sqrt(rows * columns / (max_crops * side**2))
        if shrink > 1.1:
            rows, columns = int(rows // shrink), int(columns // shrink)
    base = ImagePart("base", number(side, side), _trim(WHOLE, picture.config))
    grid = number(rows, columns, start=side * side, stride=columns + 1)
    count = side * side + rows * (columns + 1)
    if not rows or not columns:  # so thin a picture that only newlines are left
        return Layout((count,), (base,))
    return Layout((count,), (base, ImagePart("crop", grid, box)))


def _find_canvas_box(
    size: tuple[int, int], canvas: tuple[int, int], cut: tuple[float, float]
) -> Box:
    """Return what is left of a canvas, in fractions of the picture centred on it.

    Args:
        size: Height and width of the picture.
        canvas: Height and width of the canvas that it is fitted into and centred on.
        cut: Pixels cut from the left and right, and from the top and bottom.
    """
    height, width = size
    scale = min(canvas[1] / width, canvas[0] / height)
    if canvas[1] / width < canvas[0] / height:
        shown = (min(math.ceil(height * scale), canvas[0]), canvas[1])
    else:
        shown = (canvas[0], min(math.ceil(width * scale), canvas[1]))
    y_pad, x_pad = (canvas[0] - shown[0]) // 2, (canvas[1] - shown[1]) // 2
    return (
        (cut[0] - x_pad) / shown[1],
        (cut[1] - y_pad) / shown[0],
        (canvas[1] - cut[0] - x_pad) / shown[1],
        (canvas[0] - cut[1] - y_pad) / shown[0],
    )


# ---- Layouts of one grid: rows that the encoding counts, and squares of a fixed size.


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
