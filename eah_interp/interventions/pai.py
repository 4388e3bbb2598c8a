"""PAI: attention scores of the image columns scaled up, where the next word is read."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from eah_interp.interventions.intervention import (
    Intervention,
    Layers,
    check_layers,
    check_number,
    find_layers,
)
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.replacements import boost_scores
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite


@dataclass(frozen=True, kw_only=True)
class PAI(Intervention):
    """Settings of PAI's attention: `l + alpha |l|` at the image columns' scores.

    The scores `l` (scaled, before mask and softmax) of every head, in the row that the
    next word is read from: the prompt's last, and each of the answer's. Source: Liu et
    al., "Paying More Attention to Image", arXiv:2407.21771, and its release,
    github.com/LALBJ/PAI at 9bbd8bd.

    Left out: the second half of PAI, which contrasts the logits with those of the
    prompt without its image (`gamma`). That is a rule of decoding and changes no
    activation, so numbers of this are not those of the whole method.

    Attributes:
        alpha: How much more.
        layers: Indices, or a slice. The release runs `range(2, 32)` of 32 layers.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> PAI().alpha, PAI().layers, PAI.paper().alpha
        (0.2, '2:', 0.5)
    """

    kind: ClassVar[str] = "pai"
    reads_images: ClassVar[bool] = True

    alpha: float = 0.2
    layers: Layers = "2:"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, least=0.0))
        object.__setattr__(self, "layers", check_layers(self.layers))

    @classmethod
    def paper(cls, **changes: Any) -> "PAI":
        """Make the paper's settings for LLaVA-1.5: alpha 0.5 from layer 2 on.

        Args:
            **changes: Settings that differ.
        """
        return cls(**{"alpha": 0.5, **changes})

    @classmethod
    def official(cls, **changes: Any) -> "PAI":
        """Make the release's defaults: alpha 0.2 from layer 2 on.

        Args:
            **changes: Settings that differ.
        """
        return cls(**changes)

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers."""
        return find_layers(self.layers, anatomy)

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Fit any model: layers are looked up by `find_sites`."""
        del n_heads, d_model

    def apply_at(self, point: PatchPoint) -> None:
        """Boost one layer's image columns in the rows that words are read from."""
        rows = point.reading_rows(self.steps)

        def boosted(part: RowIndex, logits: Tensor) -> Tensor:
            image = point.image_mask[:, : logits.shape[-1]]
            chosen = rows[:, part]
            return boost_scores(logits, image, alpha=self.alpha, rows=chosen)

        where = rows[:, :, None].expand(-1, -1, point.call.n_heads)
        point.attend(where, change_logits=boosted)
