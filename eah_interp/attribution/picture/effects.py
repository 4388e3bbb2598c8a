"""What one run's heads took from each image token."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.readouts import TargetValues
from eah_interp.attribution.results import register


@register
@dataclass(frozen=True)
class PictureEffects:
    """What one run's heads took from each image token to each target.

    `patches.sum(-1) + text` is the sum over everything that a head read.

    Attributes:
        values: The targets.
        patches: By image token; 0 where a row has fewer than another.
        text: What was taken from all other tokens.
    """

    values: TargetValues
    patches: Float[Tensor, "target layer head patch"]
    text: Float[Tensor, "target layer head"]

    @property
    def heads(self) -> Float[Tensor, "target layer head"]:
        """What each head took from everything that it read."""
        return self.patches.sum(-1) + self.text

    def flat(self) -> Any:
        """Write all numbers in a line, float64: image tokens, then text, by head."""
        both = torch.cat([self.patches, self.text[..., None]], -1)
        return both.double().flatten().numpy()
