"""PIH: heads that make a model follow a false prompt, at their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from eah_interp.errors import SettingsError, show_value
from eah_interp.interventions.head_lists import HeadList
from eah_interp.interventions.heads import Ablation, HeadsIntervention
from eah_interp.interventions.point import PatchPoint

PIH_HEADS: Mapping[str, tuple[str, ...]] = {
    "qwen2-vl-7b": ("L0H3", "L0H6", "L11H15"),
    "llava-onevision-qwen2-7b": ("L0H3", "L0H6", "L0H26"),
    "janus-pro-7b": ("L0H20", "L1H7", "L14H27"),
}
"""The three heads that the release ablates with most success, by model."""


@dataclass(frozen=True, kw_only=True)
class PIH(HeadsIntervention):
    """Settings of PIH ablation: heads that return what they do on average.

    That is `Ablation(heads=..., how="mean")` and nothing more: each item's heads return
    their mean over its prompt. Source: Rudman et al., ACL 2026, arXiv:2601.05201, and
    its release, github.com/michalg04/prompt-induced_hallucinations at f301d68. The
    release takes the mean over the rows and items of each forward pass: of the prompt,
    and then of each new token alone, whose mean is itself, so that for one item only
    the prompt is ablated (`steps="prefill"`).

    Attributes:
        heads: `(layer, head)` pairs, or names such as `"L3H7"`: heads of the model at
            hand, which single-head knockouts have to find first. `PIH_HEADS` has the
            release's.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> PIH.official("qwen2-vl-7b").heads, PIH.official("qwen2-vl-7b").steps
        (((0, 3), (0, 6), (11, 15)), 'prefill')
    """

    kind: ClassVar[str] = "pih"
    needs_prompt: ClassVar[bool] = True

    heads: Sequence[tuple[int, int] | str] | HeadList | None = None

    @classmethod
    def paper(cls, model: str = "qwen2-vl-7b", **changes: Any) -> "PIH":
        """Make settings with the published heads of a model, ablated in every step.

        Args:
            model: A key of `PIH_HEADS`.
            **changes: Settings that differ.

        Raises:
            SettingsError: If no heads of it are published.
        """
        if not isinstance(model, str) or model not in PIH_HEADS:
            msg = (
                f"no heads of {show_value(model)}: expected one of "
                f"{', '.join(PIH_HEADS)}; for other models, PIH(heads=...)"
            )
            raise SettingsError(msg)
        return cls(**{"heads": PIH_HEADS[model], **changes})

    @classmethod
    def official(cls, model: str = "qwen2-vl-7b", **changes: Any) -> "PIH":
        """Make what the release does to one item: its prompt alone is ablated.

        Args:
            model: A key of `PIH_HEADS`.
            **changes: Settings that differ.
        """
        return cls.paper(model, **{"steps": "prefill", **changes})

    @property
    def ablation(self) -> Ablation:
        """The same as an ablation."""
        return Ablation(heads=self.pairs, how="mean", steps=self.steps)

    def learn(self, point: PatchPoint, stream: Tensor | None) -> Tensor | None:
        """Average what the heads return over each item's prompt."""
        return self.ablation.learn(point, stream)

    def apply_at(self, point: PatchPoint) -> None:
        """Write the means of one layer's heads."""
        self.ablation.apply_at(point)
