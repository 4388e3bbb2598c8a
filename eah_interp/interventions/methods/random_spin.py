"""The null of SPIN: as many heads turned down in each row, chosen at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.indices import check_integer
from eah_interp.interventions.methods.spin import SPIN
from eah_interp.interventions.point import PatchPoint, RowIndex

_FAR = 2**20
"""More words than a prompt has: rows of a prompt count down from 0."""


@dataclass(frozen=True, kw_only=True)
class RandomSPIN(SPIN):
    """Settings of SPIN whose gates are random numbers: what SPIN has to beat.

    Everything else is SPIN's: rows, layers, how many heads stay, what becomes of the
    others. The choice is drawn anew for each layer and each word of the answer; it is
    the same for every item, whatever its batch.

    Attributes:
        seed: Seeds the choice.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> RandomSPIN(seed=1).keep == SPIN().keep
        True
    """

    kind: ClassVar[str] = "random_spin"

    seed: int = 0

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        SPIN.__post_init__(self)
        object.__setattr__(self, "seed", check_integer("seed", self.seed))

    def gate(
        self, point: PatchPoint, sums: Float[Tensor, "batch head rows"], part: RowIndex
    ) -> Float[Tensor, "batch head rows"]:
        """Draw each head's gate in some rows."""
        words, places = torch.unique(point.words_before[:, part], return_inverse=True)
        drawn = [
            self._draw(point.layer, word, sums.shape[1]) for word in words.tolist()
        ]
        table = torch.stack(drawn).to(sums.device, sums.dtype)
        return table[places].transpose(1, 2)

    def _draw(self, layer: int, word: int, n_heads: int) -> Float[Tensor, " head"]:
        """Draw the gates of one layer and word."""
        seed = ((self.seed * 1009 + layer) * 2 * _FAR + word + _FAR) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(n_heads, generator=generator)
