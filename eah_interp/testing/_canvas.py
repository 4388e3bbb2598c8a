"""Pictures in the corner of a canvas: what image processors without torchvision do."""

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor


def pad_picture(
    picture: Image.Image, *, factor: int, color: int = 0, scale: float = 1.0
) -> Image.Image:
    """Put a picture on a canvas whose sides are multiples of `factor`, top left."""
    width, height = (max(1, int(side * scale)) for side in picture.size)
    sides = (-(-width // factor) * factor, -(-height // factor) * factor)
    canvas = Image.new("RGB", sides, (color,) * 3)
    canvas.paste(picture.convert("RGB").resize((width, height)))
    return canvas


def read_pixels(picture: Image.Image) -> Tensor:
    """Return pixels from -1 to 1, as `[channel, row, column]`."""
    values = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def cut_tiles(pixels: Tensor, side: int) -> Tensor:
    """Cut `[channel, row, column]` in squares `[square, channel, side, side]`."""
    channels, height, width = pixels.shape
    squares = pixels.reshape(channels, height // side, side, width // side, side)
    return squares.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def build_row_patcher(*, smallest: int = 1) -> BaseImageProcessor:
    """Build an image processor that gives patches row by row, 8 x 8 pixels each.

    Args:
        smallest: Number of pixels that a picture is enlarged to.
    """
    return hf.HunYuanVLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": smallest, "longest_edge": 512 * 512},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
