"""What an intervention reports back: donors, densities and scores by layer."""

from dataclasses import dataclass

from torch import Tensor

from eah_interp._types import Densities, Donors, HeadColumnScores
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.kernels import ColumnScores


@dataclass(frozen=True)
class LayerPatch:
    """What EAH did in one layer.

    Attributes:
        layer: The decoder layer, counted from 0.
        donors: Donor head of each batch item; -1 where nothing was patched. Under
            the `"mean"` and `"uniform"` controls, which have no donor head, -1.
        patched: Which batch items were patched.
        density: Sink density of each head; None where no score was needed.
        scores: Each column's score; None where no score was needed.
    """

    layer: int
    donors: Donors
    patched: Tensor
    density: Densities | None
    scores: ColumnScores | None


@dataclass(frozen=True)
class EAHPatch:
    """What EAH did in a forward pass, by layer.

    Attributes:
        eah: The settings.
        layers: What it did in each patched layer, in order.
    """

    eah: EAH
    layers: tuple[LayerPatch, ...]

    def __getitem__(self, layer: int) -> LayerPatch:
        """Look up one patched layer by its decoder index.

        Raises:
            SettingsError: If that layer was not patched.
        """
        for patch in self.layers:
            if patch.layer == layer:
                return patch
        named = ", ".join(str(patch.layer) for patch in self.layers)
        msg = f"layer {layer} was not patched: patched layers are {named}"
        raise SettingsError(msg)

    @property
    def donors(self) -> Donors:
        """Donor head of each item, `[batch]`, where one layer is patched.

        Raises:
            SettingsError: If several are; look one up, as in `patch[1].donors`.
        """
        return self._only().donors

    @property
    def density(self) -> Densities | None:
        """Sink density, `[batch, head]`, where one layer is patched.

        Raises:
            SettingsError: If several are.
        """
        return self._only().density

    @property
    def scores(self) -> HeadColumnScores | None:
        """Column scores, `[batch, head, key]`, where one layer is patched.

        Raises:
            SettingsError: If several are.
        """
        scores = self._only().scores
        return None if scores is None else scores.scores

    def _only(self) -> LayerPatch:
        if len(self.layers) != 1:
            named = ", ".join(str(patch.layer) for patch in self.layers)
            first = self.layers[0].layer
            msg = f"layers {named} were patched: name one, as in patch[{first}]"
            raise SettingsError(msg)
        return self.layers[0]
