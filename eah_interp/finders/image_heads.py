"""Heads whose output changes most when the image is taken away: VHD."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.arguments import by_name
from eah_interp.attribution.runs import visit_layers
from eah_interp.finders.scores import HeadScores
from eah_interp.interventions.directions import find_last, pair_runs
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.fingerprint import hash_weights
from eah_interp.lvlm.inputs import Encoding


@by_name
def find_image_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> HeadScores:
    """Find the heads that see the image: by their divergence without it.

    The vision-aware head divergence (VHD) of a head is the Euclidean distance between
    what it returns at the prompt's last token with the image and without it. Source: He
    et al., arXiv:2412.13949. Two forward passes an item give it for every head.

    Distances grow with how much a head returns at all: it is large for a head that
    reads the image, and for a loud head of a late layer, which reads what others wrote.
    Its null exchanges the heads of each item: with it no head is foremost throughout.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        batch_size: Most items in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Scores by item and head.

    Raises:
        InputError: If images or prompts do not fit, or a row has no image.
        SettingsError: If the batch size is below 1.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> images = [random_image(seed) for seed in range(4)]
        >>> found = find_image_heads(eah.load(), images, "Describe the image.")
        >>> found.scores.shape[0], len(found.top(3))
        (4, 3)
    """
    parts = [
        (_read_heads(model, seen) - _read_heads(model, unseen)).norm(dim=-1)
        for seen, unseen in pair_runs(
            model, images, prompts, batch_size=batch_size, progress=progress
        )
    ]
    scores = torch.cat(parts)
    return HeadScores(
        finder="image",
        measure="distance of the output without the image",
        scores=scores,
        layers=tuple(sorted(model.anatomy.sites)),
        items=torch.arange(len(scores)),
        labels="heads",
        weights=hash_weights(model),
        model=name_model(model),
    )


def _read_heads(
    model: Any, encoding: Encoding
) -> Float[Tensor, "item layer head d_value"]:
    """Read what every head returns at each row's last token."""
    last = find_last(encoding)
    rows = torch.arange(len(last))
    found: list[Tensor] = []

    def look(point: PatchPoint) -> None:
        found.append(point.operation.output[0].cpu()[rows, last].float())

    visit_layers(model, encoding, look, layers=sorted(model.anatomy.sites))
    return torch.stack(found, 1)
