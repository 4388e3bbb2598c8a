"""What some heads attend to in one run."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp.attribution.results import register

Run = Literal["plain", "patched"]
"""Which run."""


@register
@dataclass(frozen=True)
class PatternRun:
    """What some heads attend to in one run.

    Attributes:
        rows: Their patterns in some query rows. A row sums to one, or to less where a
            learned sink takes a share.
        sinks: Which image columns are their vision sinks.
    """

    rows: Float[Tensor, "batch head row key"]
    sinks: Bool[Tensor, "batch head key"]
