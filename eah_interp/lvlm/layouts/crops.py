"""Layouts of images that are cropped, resized or padded, and what of them is shown.

Families: llava, vipllava, paligemma, llava_next, llava_next_video, llava_onevision,
molmo2, chameleon, got_ocr2, deepseek_vl, deepseek_vl_hybrid, janus.

The arithmetic follows transformers' own, rounding included (`unpad_image`,
`pack_image_features` and the image processors of LLaVA, LLaVA-NeXT and
LLaVA-OneVision), but on numbers of tokens and pixels instead of features.
"""

import math

import torch
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution

from eah_interp.lvlm.layouts.grids import (
    WHOLE,
    Box,
    EncodedImage,
    ImagePart,
    Layout,
    image_size_of,
    lay_out_pixtral,
    number,
    one_grid,
    pair,
    tower_grid,
)

NO_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")
"""Vision towers whose first token is a patch."""


def find_shown_box(image: EncodedImage) -> Box | None:
    """Return the part of an image that a resizing and cropping processor keeps.

    Its image processor may pad to a square, resize, and crop the centre. The region
    reaches beyond 0 and 1 where padding is added; None where it is not known.
    """
    image_processor, size = image.image_processor, image.size
    if image_processor is None:
        return None
    crops = getattr(image_processor, "do_center_crop", False)
    pads = getattr(image_processor, "do_pad", False)
    if not crops and not pads:
        return WHOLE
    if size is None or (pads and not hasattr(image_processor, "pad_to_square")):
        return None
    height, width = size
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if pads:  # the image in the middle of a square
        side = max(height, width)
        left, top = -float((side - width) // 2), -float((side - height) // 2)
        right, bottom = left + side, top + side
        height = width = side
    if crops:
        resized = _resize(height, width, image_processor)
        if resized is None:
            return None
        height, width = resized
        x_scale, y_scale = (right - left) / width, (bottom - top) / height
        crop = image_processor.crop_size
        x, y = (width - crop["width"]) // 2, (height - crop["height"]) // 2
        left, top = left + x * x_scale, top + y * y_scale
        right, bottom = left + crop["width"] * x_scale, top + crop["height"] * y_scale
    return left / size[1], top / size[0], right / size[1], bottom / size[0]


def _resize(
    height: int, width: int, image_processor: BaseImageProcessor
) -> tuple[int, int] | None:
    """Return an image's size after the resize step; None for rules unknown here."""
    if not getattr(image_processor, "do_resize", False):
        return height, width
    size = image_processor.size
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


def lay_out_square(image: EncodedImage) -> Layout:
    """PaliGemma: one grid of the tower's patches."""
    rows, columns = tower_grid(image.config)
    box = WHOLE if image.processor is None else find_shown_box(image)
    return one_grid(rows, columns, _trim(box, image.config))


def lay_out_llava(image: EncodedImage) -> Layout:
    """LLaVA and ViP-LLaVA: one grid; a class token is dropped, or comes first."""
    vision = image.config.vision_config
    if vision.model_type == "pixtral":
        return lay_out_pixtral(image)
    pixels = image.encoding.get("pixel_values")
    size = vision.image_size if pixels is None else image_size_of(pixels)
    height, width = pair(size)
    patch_height, patch_width = pair(vision.patch_size)
    rows, columns = height // patch_height, width // patch_width
    classes = 0 if vision.model_type in NO_CLASS_TOKEN else 1
    strategy = getattr(image.config, "vision_feature_select_strategy", "default")
    if strategy == "default":  # the first token of the tower is dropped
        count = rows * columns + classes - 1
        start = 0
    else:
        count = rows * columns + classes
        start = classes
    if count < rows * columns:  # the first patch is lost: no rectangle is left
        return Layout((count,))
    grid = number(rows, columns, start=start)
    box = _trim(find_shown_box(image), image.config)
    return Layout((count,), (ImagePart("image", grid, box),))


def lay_out_llava_next(image: EncodedImage) -> Layout:
    """LLaVA-NeXT: base view, then the crops as one grid with a newline on each row."""
    height, width = image.look_up("image_sizes")
    return _lay_out_anyres(image, (height, width), max_crops=None)


def lay_out_onevision(image: EncodedImage) -> Layout:
    """LLaVA-OneVision: as LLaVA-NeXT, shrunk where crops are many; or base alone."""
    height, width = image.look_up("image_sizes")
    in_row = image.encoding.get("batch_num_images")
    if in_row is not None:
        counts = [int(count) for count in in_row for _ in range(int(count))]
        if counts[image.index] > 1:  # several images in the prompt: no crops
            rows, columns = tower_grid(image.config)
            box = _trim(WHOLE, image.config)
            base = ImagePart("base", number(rows, columns), box)
            return Layout((rows * columns + 1,), (base,))
    ratio = image.config.vision_aspect_ratio
    return _lay_out_anyres(
        image, (height, width), max_crops=int(ratio.removeprefix("anyres_max_"))
    )


def _lay_out_anyres(
    image: EncodedImage, size: tuple[int, int], *, max_crops: int | None
) -> Layout:
    """Lay out base view and crops of an image of the given height and width.

    The crops are one grid of equal cells, as the model itself takes them. Where a
    crop has pixels that make no whole patch (`_trim`), cells are off by up to as many.
    """
    side, _ = tower_grid(image.config)
    pixels, _ = pair(image.config.vision_config.image_size)
    canvas = select_best_resolution(size, image.config.image_grid_pinpoints)
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
    base = ImagePart("base", number(side, side), _trim(WHOLE, image.config))
    grid = number(rows, columns, start=side * side, stride=columns + 1)
    count = side * side + rows * (columns + 1)
    if not rows or not columns:  # so thin an image that only newlines are left
        return Layout((count,), (base,))
    return Layout((count,), (base, ImagePart("crop", grid, box)))


def _find_canvas_box(
    size: tuple[int, int], canvas: tuple[int, int], cut: tuple[float, float]
) -> Box:
    """Return what is left of a canvas, in fractions of the image centred on it.

    Args:
        size: Height and width of the image.
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


def lay_out_molmo2(image: EncodedImage) -> Layout:
    """Molmo2: the whole image at low resolution, then its crops as one grid.

    Tokens pool squares of patches; `image_token_pooling` names them, with -1 for the
    padding that completes the squares at the edges.
    """
    low_rows, low_columns, rows, columns = image.look_up("image_grids")
    earlier = torch.as_tensor(image.encoding["image_grids"][: image.index])
    done = int((earlier[:, 0] * earlier[:, 1] + earlier[:, 2] * earlier[:, 3]).sum())
    parts = []
    start = 0
    for name, height, width in (
        ("base", low_rows, low_columns),
        ("crop", rows, columns),
    ):
        pooled = image.encoding["image_token_pooling"][done + start :]
        box = find_pooled_box(pooled[: height * width], (height, width))
        parts.append(ImagePart(name, number(height, width, start=start), box))
        start += height * width
    by_row = image.list_runs()[0][1] == low_columns != low_rows * low_columns
    if by_row:  # a column token ends each row
        runs = (low_columns,) * low_rows + (columns,) * rows
    else:
        runs = (low_rows * low_columns, rows * columns)
    return Layout(runs, tuple(parts))


def find_pooled_box(pooled: torch.Tensor, shape: tuple[int, int]) -> Box:
    """Return what a grid of pooled squares shows, reaching over padded edges.

    Args:
        pooled: Patch numbers `[square, patch]` of each square, row by row; -1 for none.
        shape: Rows and columns of squares.
    """
    rows, columns = shape
    side = math.isqrt(pooled.shape[-1])
    real = (pooled >= 0).reshape(rows, columns, side, side).transpose(1, 2)
    real = real.reshape(rows * side, columns * side)
    across, down = real.any(0).long(), real.any(1).long()
    left, top = int(across.argmax()), int(down.argmax())
    width, height = int(across.sum()), int(down.sum())
    return (
        -left / width,
        -top / height,
        (columns * side - left) / width,
        (rows * side - top) / height,
    )


# ---- One square of what is left of a cropped, resized or padded image.


def lay_out_chameleon(image: EncodedImage) -> Layout:
    """Chameleon: a square of codes of what the processor's centre crop keeps."""
    autoencoder = image.config.vq_config
    side = autoencoder.resolution // 2 ** (len(autoencoder.channel_multiplier) - 1)
    box = find_shown_box(image)
    return one_grid(side, side, box)


def lay_out_got(image: EncodedImage) -> Layout:
    """GOT-OCR2: a square for each page; two convolutions halve its sides."""
    rows, columns = (-(-side // 4) for side in tower_grid(image.config))
    return one_grid(rows, columns)


def lay_out_padded(image: EncodedImage) -> Layout:
    """DeepSeek-VL and Janus: a square of patches of the image padded to a square."""
    rows, columns = tower_grid(image.config)
    return one_grid(rows, columns, _find_padded_box(image))


def _find_padded_box(image: EncodedImage) -> Box | None:
    """Return the square around the resized image, in fractions of the image."""
    image_processor = image.image_processor
    if image_processor is None:
        return None
    if not image_processor.do_pad:
        return WHOLE
    if image.size is None:
        return None
    side = image_processor.size["height"]
    scale = side / max(image.size)
    height, width = (
        max(round(n * scale), image_processor.min_size) for n in image.size
    )
    x, y = (side - width) // 2, (side - height) // 2
    return -x / width, -y / height, (side - x) / width, (side - y) / height
