"""Heads-guided attention: image columns raised by the mean size of heads' scores."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.interventions.intervention import (
    Layers,
    LayersIntervention,
    check_number,
)
from eah_interp.interventions.point import PatchPoint, RowIndex


@dataclass(frozen=True, kw_only=True)
class HeadsGuided(LayersIntervention):
    """Settings of heads-guided attention: `l[h] + alpha mean over heads of |l|`.

    The scores `l` (scaled, before mask and softmax) of the image columns, in the row
    that the next word is read from. Every head is raised by the same amount, so that
    columns at which many heads have large scores gain in all of them. Source: Jiang et
    al., "Devils in Middle Layers", arXiv:2411.16724, and its release,
    github.com/ZhangqiJiang07/middle_layers_indicating_hallucinations at a0622a9.

    Attributes:
        alpha: How much more.
        layers: Indices, or a slice; the default is as deep in any decoder as the
            paper's layers 5 to 18 are in one of 32.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> HeadsGuided().alpha, HeadsGuided.paper().layers
        (0.5, '5:19')
    """

    kind: ClassVar[str] = "heads_guided"
    reads_images: ClassVar[bool] = True

    alpha: float = 0.5
    layers: Layers = "16%:59%"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, least=0.0))

    @classmethod
    def paper(cls, **changes: Any) -> "HeadsGuided":
        """Make the settings for LLaVA-1.5-7B: alpha 0.5 in layers 5 to 18.

        Args:
            **changes: Settings that differ.
        """
        return cls(**{"layers": "5:19", **changes})

    @classmethod
    def official(cls, **changes: Any) -> "HeadsGuided":
        """Make the release's defaults, which are the same.

        Args:
            **changes: Settings that differ.
        """
        return cls.paper(**changes)

    def apply_at(self, point: PatchPoint) -> None:
        """Raise one layer's image columns in the rows that words are read from."""

        def raised(part: RowIndex, logits: Tensor) -> Tensor:
            del part
            image = point.image_mask[:, : logits.shape[-1]]
            return guide_scores(logits, image, alpha=self.alpha)

        rows = point.reading_rows(self.steps)
        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        point.attend(where, change_logits=raised)


def guide_scores(logits: Tensor, columns: ColumnMask, *, alpha: float) -> Tensor:
    """Raise scores at some columns by their mean size over heads.

    Args:
        logits: `[batch head rows key]`.
        columns: True at the columns to look at more.
        alpha: How much more.

    Returns:
        The new scores.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[[[2.0, 1.0]], [[-4.0, 1.0]]]])
        >>> guide_scores(scores, torch.tensor([[True, False]]), alpha=0.5).tolist()
        [[[[3.5, 1.0]], [[-2.5, 1.0]]]]
    """
    guide = alpha * logits.abs().mean(1, keepdim=True)
    return torch.where(columns[:, None, None], logits + guide, logits)
