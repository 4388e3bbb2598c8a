"""What a sink score is compared with: vision sinks, their density, dense heads."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from eah_interp._types import (
    ColumnMask,
    Definition,
    Densities,
    HeadColumnMask,
    HeadColumnScores,
    HeadMask,
)
from eah_interp.errors import SettingsError

DEFAULT_BETA: dict[Definition, float] = {
    "paper": 0.002,
    "official": 0.0008,
    "visible": 1.0,
}
"""The threshold each definition is published with (ours: the uniform share)."""


@dataclass(frozen=True)
class ColumnScores:
    """How much attention each column receives, and what that is compared with.

    Attributes:
        scores: Mean received attention, float32; 0 where a column is not judged.
        unit: What `beta` multiplies: 1, or under `"visible"` each column's uniform
            share. The head axis is 1 where all heads see the same keys.
        columns: The columns that are judged (`"official"` drops the first of them).
    """

    scores: HeadColumnScores
    unit: Float[Tensor, "batch #head key"]
    columns: ColumnMask

    def sinks(self, beta: float) -> HeadColumnMask:
        """Mark the vision sinks: judged columns with `score > beta * unit`.

        Args:
            beta: Threshold, in multiples of `unit`.

        Returns:
            True at each vision sink of each head.

        Example:
            >>> import torch
            >>> scores = torch.tensor([[[0.0, 0.3, 0.1]]])
            >>> judged = torch.tensor([[False, True, True]])
            >>> ColumnScores(scores, torch.ones(1, 1, 3), judged).sinks(0.2)
            tensor([[[False,  True, False]]])
        """
        return (self.scores > beta * self.unit) & self.columns.unsqueeze(1)

    def density(self, beta: float) -> Densities:
        """Measure the share of the judged columns that are vision sinks.

        Args:
            beta: Threshold, in multiples of `unit`.

        Returns:
            Sink density of each head, in [0, 1].

        Example:
            >>> import torch
            >>> scores = torch.tensor([[[0.0, 0.3, 0.1]]])
            >>> judged = torch.tensor([[False, True, True]])
            >>> ColumnScores(scores, torch.ones(1, 1, 3), judged).density(0.2)
            tensor([[0.5000]])
        """
        judged = self.columns.sum(-1, keepdim=True).clamp(min=1)
        return self.sinks(beta).sum(-1) / judged


def dense_heads(density: Densities, *, gamma: float) -> HeadMask:
    """Mark the dense vision-sink heads, `density >= gamma`.

    Args:
        density: Sink density of each head.
        gamma: Least density, in (0, 1]; the paper looks at 0.15 and 0.20.

    Returns:
        True at each dense head.

    Raises:
        SettingsError: If gamma is outside (0, 1].

    Example:
        >>> import torch
        >>> dense_heads(torch.tensor([[0.1, 0.2]]), gamma=0.2)
        tensor([[False,  True]])
    """
    if not 0 < gamma <= 1:
        msg = f"gamma is a share of the image columns in (0, 1], got {gamma}"
        raise SettingsError(msg)
    return density >= gamma
