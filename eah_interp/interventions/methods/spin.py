"""SPIN: in each row, the heads with the lowest scores of the image turned down."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_choice
from eah_interp.interventions.intervention import LayersIntervention, check_number
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock

Rows = Literal["last", "text"]
"""Rows that words are read from, or every text token's."""

_TASKS = {
    "caption": {"keep": 0.95, "factor": 0.08},
    "yes_no": {"keep": 0.8, "factor": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class SPIN(LayersIntervention):
    """Settings of SPIN: which heads stay as they are, what becomes of the others.

    A head's gate in a row is the sum of its scores (scaled, before the softmax) over
    the image columns that the row sees. The `floor(keep * n_heads)` heads of the
    largest gates stay; what the others return there is multiplied by `factor`. (The
    release divides gates by their standard deviation over heads, and takes a softmax,
    before it ranks them: neither changes their order.) Source: Sarkar et al.,
    arXiv:2505.16411, and its release, github.com/YUECHE77/SPIN at a6ddf4a.

    Attributes:
        keep: Share of heads that stay.
        factor: What the others' outputs are multiplied by.
        rows: `"last"`: rows that words are read from, as in the release; `"text"`:
            those of every text token that sees an image, as the abstract has it.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> SPIN().keep, SPIN().factor, SPIN.official().factor
        (0.95, 0.08, 0.0)
        >>> SPIN.paper(task="yes_no").keep
        0.8
    """

    kind: ClassVar[str] = "spin"
    reads_images: ClassVar[bool] = True

    keep: float = 0.95
    factor: float = 0.08
    rows: Rows = "last"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        LayersIntervention.__post_init__(self)
        keep = check_number("keep", self.keep, least=0.0, most=1.0)
        object.__setattr__(self, "keep", keep)
        factor = check_number("factor", self.factor, least=0.0)
        object.__setattr__(self, "factor", factor)
        check_choice("rows", self.rows, Rows)

    @classmethod
    def paper(cls, *, task: str = "caption", **changes: Any) -> "SPIN":
        """Make the settings that the release gives for LLaVA-1.5-7B.

        Args:
            task: `"caption"` (keep 0.95, factor 0.08), `"yes_no"` (0.8, 0.1).
            **changes: Settings that differ.

        Raises:
            SettingsError: If there are none for the task.
        """
        if not isinstance(task, str) or task not in _TASKS:
            listed = ", ".join(_TASKS)
            msg = f"task must be one of {listed}, got {show_value(task)}"
            raise SettingsError(msg)
        return cls(**{**_TASKS[task], **changes})

    @classmethod
    def official(cls, **changes: Any) -> "SPIN":
        """Make the defaults of the release's scripts: the others return nothing.

        Args:
            **changes: Settings that differ.
        """
        return cls(**{"factor": 0.0, **changes})

    def apply_at(self, point: PatchPoint) -> None:
        """Turn heads down in some rows of one layer."""
        scores: list[Tensor] = []

        def noted(part: RowIndex, logits: Tensor) -> Tensor:
            del part
            scores[:] = [logits.clone()]  # mask and bias are added in place
            return logits

        def turned_down(block: PatternBlock, part: RowIndex) -> Tensor:
            image = point.image_mask[:, None, None, : block.weights.shape[-1]]
            seen = block.visible & image
            gates = self.gate(point, (scores[0] * seen).sum(-1), part)
            kept = rank_heads(gates, keep=self.keep)
            down = seen.any(-1) & ~kept
            return torch.where(
                down[..., None], self.factor * block.weights, block.weights
            )

        rows = point.reading_rows(self.steps)
        if self.rows == "text":
            rows = point.rows_of(self.steps) & ~point.rows.image
        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        point.attend(where, change=turned_down, change_logits=noted)

    def gate(
        self, point: PatchPoint, sums: Float[Tensor, "batch head rows"], part: RowIndex
    ) -> Float[Tensor, "batch head rows"]:
        """Give each head's gate in some rows: the heads of the largest ones stay.

        Args:
            point: The attention call.
            sums: Each head's scores of the image columns that it sees, in sum.
            part: Which rows of the call these are.
        """
        del point, part
        return sums


def rank_heads(
    gates: Float[Tensor, "batch head rows"], *, keep: float
) -> Bool[Tensor, "batch head rows"]:
    """Mark the heads with the largest gates of a row; on a tie, the lower index.

    Args:
        gates: A number for each head and row.
        keep: Share of the heads, rounded down.

    Returns:
        True at as many heads in every row.

    Example:
        >>> import torch
        >>> gates = torch.tensor([[[1.0], [3.0], [2.0], [2.0]]])
        >>> rank_heads(gates, keep=0.5)[0, :, 0].tolist()
        [False, True, True, False]
    """
    n_kept = int(keep * gates.shape[1])
    order = gates.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < n_kept
