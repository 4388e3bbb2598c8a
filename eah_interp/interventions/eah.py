"""EAH and its rivals as activation patches, inside any nnsight trace."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from eah_interp._types import (
    Definition,
    Densities,
    DonorRule,
    Donors,
    HeadColumnScores,
    Steps,
)
from eah_interp.errors import SettingsError
from eah_interp.kernels.sinks import DEFAULT_BETA, ColumnScores, HeadZero

# ---- The settings of an EAH broadcast: what is patched, and who donates.


Items = Literal["all", "first"]
"""Which batch items are patched; `"first"` is the released file's accident."""


@dataclass(frozen=True, kw_only=True)
class EAH:
    """Settings of EAH: broadcast one head's pattern to others in shallow layers.

    Source: Zhang et al., arXiv:2411.09968; `docs/method.md` says how the three
    definitions of the sink score differ.

    Attributes:
        layers: Decoder layers to patch, counted from 0. The paper's "layer two" is 1.
        definition: How sinks are scored: `"visible"` (ours), `"paper"`,
            `"official"` (the released file).
        beta: Threshold of a vision sink; by default 1.0 times the uniform share under
            `"visible"`, 0.002 under `"paper"`, 0.0008 under `"official"`.
        gamma: Least sink density that a densest donor must have; None for any.
        donor: `"densest"` is the method. Controls: `"sparsest"`, `"random"` head,
            `"mean"` of all patterns, `"uniform"` attention over the image columns,
            `"shuffled"` image columns of the densest; or a head's index.
        recipients: `"all"` heads, or the indices of those that receive.
        steps: `"prefill"`, or `"all"`: decoding steps reuse the prefill's donor.
        seed: For `"random"` and `"shuffled"`: one seed, which gives an item the same
            draw whatever batch it stands in, or a seed for each batch item.
        items: `"all"` batch items, or only the `"first"`, as in the released file.
        head_0: Whether head 0 may donate; `"never"`, as in the released file, leaves
            an item unpatched whose densest head is head 0.

    Raises:
        SettingsError: If a value is impossible, when the settings are made.

    Example:
        >>> EAH().beta, EAH.paper().beta, EAH.official(layers=(1,)).beta
        (1.0, 0.002, 0.0008)
        >>> EAH(gamma=2.0)
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: gamma is a share of the image columns in \
(0, 1], got 2.0
    """

    layers: tuple[int, ...] = (1,)
    definition: Definition = "visible"
    beta: float | None = None
    gamma: float | None = None
    donor: DonorRule | int = "densest"
    recipients: Literal["all"] | tuple[int, ...] = "all"
    steps: Steps = "prefill"
    seed: int | tuple[int, ...] = 0
    items: Items = "all"
    head_0: HeadZero = "eligible"

    def __post_init__(self) -> None:
        _check_choice("definition", self.definition, Definition)
        _check_choice("steps", self.steps, Steps)
        _check_choice("items", self.items, Items)
        _check_choice("head_0", self.head_0, HeadZero)
        if isinstance(self.donor, bool) or not isinstance(self.donor, int):
            _check_choice("donor", self.donor, DonorRule, more=" or a head index")
        elif self.donor < 0:
            msg = f"donor head must be 0 or more, got {self.donor}"
            raise SettingsError(msg)
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        if self.recipients != "all":
            chosen = _indices("recipients", self.recipients)
            object.__setattr__(self, "recipients", chosen)
        if not isinstance(self.seed, int):
            object.__setattr__(self, "seed", tuple(int(s) for s in self.seed))
        beta = DEFAULT_BETA[self.definition] if self.beta is None else self.beta
        if not 0 <= beta < float("inf"):
            msg = f"beta must be a number of 0 or more, got {beta}"
            raise SettingsError(msg)
        object.__setattr__(self, "beta", float(beta))
        if self.gamma is not None and not 0 < self.gamma <= 1:
            msg = f"gamma is a share of the image columns in (0, 1], got {self.gamma}"
            raise SettingsError(msg)

    @classmethod
    def paper(cls, **changes: Any) -> "EAH":
        """Make the settings of the paper: layer index 1, its score, any head donates.

        Args:
            **changes: Settings that differ.

        Returns:
            The settings.
        """
        return cls(**{"definition": "paper", **changes})

    @classmethod
    def official(cls, **changes: Any) -> "EAH":
        """Make the settings that the released file really runs with.

        Decoder layer 15 (not two), head 0 never donates, only the first batch item
        is patched, the score divides by `E - (y - S)`, beta is 0.0008.

        Args:
            **changes: Settings that differ, such as `layers=(1,)`.

        Returns:
            The settings.
        """
        released = {
            "layers": (15,),
            "definition": "official",
            "items": "first",
            "head_0": "never",
        }
        return cls(**{**released, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EAH":
        """Make settings from a mapping, as JSON gives it back.

        Raises:
            SettingsError: If a key is unknown.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            msg = (
                f"unknown settings {', '.join(unknown)}: expected "
                f"{', '.join(sorted(known))}"
            )
            raise SettingsError(msg)
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**lists)

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as a mapping that JSON can hold.

        Example:
            >>> EAH.from_dict(EAH.paper(gamma=0.2).to_dict()) == EAH.paper(gamma=0.2)
            True
        """
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def needs_scores(self) -> bool:
        """Whether the choice of donor depends on sink densities."""
        return self.donor in ("densest", "sparsest", "shuffled")

    @property
    def has_donor_head(self) -> bool:
        """Whether one head donates: not under `"mean"` and `"uniform"`."""
        return self.donor not in ("mean", "uniform")

    @property
    def remakes_pattern(self) -> bool:
        """Whether the donated pattern is no head's own, so that it must be built."""
        return self.donor in ("mean", "uniform", "shuffled")

    def check_fits(self, *, n_heads: int) -> None:
        """See that heads named in the settings exist in a model.

        Args:
            n_heads: Query heads of a layer.

        Raises:
            SettingsError: If one does not.
        """
        named = [] if self.recipients == "all" else list(self.recipients)
        if isinstance(self.donor, int):
            named.append(self.donor)
        beyond = [head for head in named if head >= n_heads]
        if beyond:
            msg = f"heads {beyond} do not exist: the model has heads 0 to {n_heads - 1}"
            raise SettingsError(msg)


def _check_choice(name: str, value: object, choices: Any, more: str = "") -> None:
    if value not in get_args(choices):
        listed = ", ".join(get_args(choices))
        msg = f"{name} must be one of {listed}{more}, got {value!r}"
        raise SettingsError(msg)


def _indices(name: str, values: object) -> tuple[int, ...]:
    if isinstance(values, int):
        values = (values,)
    if not isinstance(values, tuple | list | range) or not values:
        msg = f"{name} must be a non-empty tuple of indices, got {values!r}"
        raise SettingsError(msg)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            msg = f"{name} must be indices of 0 or more, got {value!r}"
            raise SettingsError(msg)
    if len(set(values)) != len(values):
        msg = f"{name} must not repeat an index, got {tuple(values)}"
        raise SettingsError(msg)
    return tuple(sorted(values))


# ---- What an intervention reports back: donors, densities and scores by layer.


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
