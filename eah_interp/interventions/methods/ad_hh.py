"""AD-HH: heads cut off from the words after the image, where they look at them most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import SettingsError, show_value
from eah_interp.interventions.head_lists import HeadList
from eah_interp.interventions.heads import HeadsIntervention
from eah_interp.interventions.intervention import check_number
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock

HALLUCINATION_HEADS: Mapping[str, tuple[str, ...]] = {
    "llava-1.5-7b": (
        *("L13H31", "L14H16", "L15H10", "L15H24", "L15H25", "L16H29", "L17H0"),
        *("L17H28", "L18H9", "L18H26", "L19H18", "L19H27", "L20H12", "L22H20"),
        *("L26H9", "L26H28", "L27H29", "L30H9", "L31H3", "L31H26"),
    ),
    "llava-1.5-13b": (
        *("L0H8", "L0H22", "L14H1", "L14H9", "L15H26", "L15H28", "L15H31"),
        *("L17H5", "L17H25", "L17H27", "L18H32", "L19H0", "L19H5", "L19H14"),
        *("L19H30", "L19H37", "L20H8", "L20H11", "L20H34", "L21H6", "L21H31"),
        *("L21H32", "L22H16", "L22H34", "L23H18", "L23H20", "L25H1", "L26H27"),
        *("L29H27", "L30H24", "L35H10", "L36H26", "L37H11", "L39H26", "L39H32"),
    ),
    "llava-1.6-34b": (
        *("L35H47", "L37H48", "L40H27", "L41H34", "L43H2", "L43H4", "L43H48"),
        *("L44H29", "L45H34", "L54H34"),
    ),
}
"""Heads that the release names, by model."""


@dataclass(frozen=True, kw_only=True)
class ADHH(HeadsIntervention):
    """Settings of AD-HH: which heads are cut off from text, and from how much on.

    In a row that a word is read from, if a listed head's weights (after the softmax)
    of the columns behind the image sum to `tau` or more, they become zero there, and
    the rest stays as it is: the row then sums to less than one. Each item's sum is its
    own. Source: Yang et al., "Modular Attribution and Intervention", ICLR 2025, and its
    release, github.com/TianyunYoung/Hallucination-Attribution at 841fc1b.

    Attributes:
        heads: `(layer, head)` pairs, or names such as `"L3H7"`: heads that cause
            hallucination in the model at hand, which attribution has to find first.
            `HALLUCINATION_HEADS` has the release's.
        tau: Least sum that is cut off.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> ADHH.paper().tau, len(ADHH.paper().heads)
        (0.4, 20)
    """

    kind: ClassVar[str] = "ad_hh"
    reads_images: ClassVar[bool] = True

    heads: Sequence[tuple[int, int] | str] | HeadList | None = None
    tau: float = 0.4

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        HeadsIntervention.__post_init__(self)
        object.__setattr__(self, "tau", check_number("tau", self.tau, least=0.0))

    @classmethod
    def paper(cls, model: str = "llava-1.5-7b", **changes: Any) -> "ADHH":
        """Make the settings that the release runs LLaVA with: its heads, tau 0.4.

        Args:
            model: A key of `HALLUCINATION_HEADS`.
            **changes: Settings that differ.

        Raises:
            SettingsError: If the release names no heads of it.
        """
        if not isinstance(model, str) or model not in HALLUCINATION_HEADS:
            msg = (
                f"no heads of {show_value(model)}: expected one of "
                f"{', '.join(HALLUCINATION_HEADS)}; for other models, ADHH(heads=...)"
            )
            raise SettingsError(msg)
        return cls(**{"heads": HALLUCINATION_HEADS[model], **changes})

    @classmethod
    def official(cls, model: str = "llava-1.5-7b", **changes: Any) -> "ADHH":
        """Make the release's script's own default: tau 0, so heads are always cut off.

        Args:
            model: A key of `HALLUCINATION_HEADS`.
            **changes: Settings that differ.
        """
        return cls.paper(model, **{"tau": 0.0, **changes})

    def apply_at(self, point: PatchPoint) -> None:
        """Cut one layer's heads off in the rows that words are read from."""
        behind = columns_behind(point.image_mask)

        def cut(block: PatternBlock, part: RowIndex) -> Tensor:
            del part
            text = behind[:, None, None, : block.weights.shape[-1]] & block.visible
            total = (block.weights * text).sum(-1, keepdim=True)
            return block.weights.masked_fill(text & (total >= self.tau), 0.0)

        rows = point.reading_rows(self.steps)
        point.attend(rows[:, :, None] & self.mask_at(point), change=cut)


def columns_behind(image_mask: ColumnMask) -> Bool[Tensor, "batch key"]:
    """Mark the columns behind the last image column.

    Args:
        image_mask: True at image tokens.

    Returns:
        True behind them; everywhere in a row that has none.

    Example:
        >>> import torch
        >>> columns_behind(torch.tensor([[False, True, True, False, False]])).tolist()
        [[False, False, False, True, True]]
    """
    left: Bool[Tensor, "batch key"] = image_mask.flip(-1).cumsum(-1).flip(-1) == 0
    return left
