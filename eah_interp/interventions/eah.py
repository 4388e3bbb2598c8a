"""EAH as an activation patch: one head's pattern, given to the others of its layer."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from eah_interp._types import (
    ColumnMask,
    Definition,
    Densities,
    DonorRule,
    Donors,
    HeadColumnScores,
    HeadMask,
    SinkColumns,
    Steps,
    Tower,
)
from eah_interp.arguments import check_mapping
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_choice, to_float, to_int, to_ints
from eah_interp.interventions.donation import (
    LayerPatch,
    ask_function,
    layer_seed,
    make_pattern,
    score_call,
)
from eah_interp.interventions.intervention import (
    Intervention,
    check_indices,
    of_tower,
)
from eah_interp.interventions.point import PatchPoint, RowIndex
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.sinks import DEFAULT_BETA, ColumnScores, HeadZero, choose_donors
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite
from eah_interp.plugins import describe_plugin, find_plugin
from eah_interp.results import ModelResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@runtime_checkable
class DonorFunction(Protocol):
    """A donor rule of a user's own.

    It is asked once for each patched layer, while the prompt is read, and must treat
    items independently: an item has to get the donor that it gets alone.

    Example:
        >>> def second_densest(scores, density, *, layer):
        ...     return density.argsort(dim=1, descending=True)[:, 1]
        >>> EAH(donor=second_densest).donor_name
        'second_densest'
    """

    def __call__(
        self,
        scores: HeadColumnScores,
        density: Densities,
        *,
        layer: int,
    ) -> Donors:
        """Choose.

        Args:
            scores: Mean attention that each column gets, `[batch, head, column]`; zero
                outside the image.
            density: Share of image columns that are sinks, `[batch, head]`.
            layer: The decoder layer, counted from 0.

        Returns:
            A head for each item, `[batch]`, integers; -1 leaves an item unpatched.
        """
        ...


Items = Literal["all", "first"]
"""Which batch items are patched; `"first"` is the released file's accident."""


@dataclass(frozen=True, kw_only=True)
class EAH(Intervention):
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
            `"shuffled"` image columns of the densest; a head's index; or a rule of
            your own, a `DonorFunction`.
        recipients: `"all"` heads, or the indices of those that receive.
        steps: `"prefill"`, or `"all"`: decoding steps reuse the prefill's donor.
        seed: For `"random"` and `"shuffled"`: one seed, which gives an item the same
            draw whatever batch it stands in, or a seed for each batch item.
        items: `"all"` batch items, or only the `"first"`, as in the released file.
        columns: Which image columns count as sinks: `"all"`, or those that are sinks
            of the vision `"tower"` or of the `"language"` model (`find_sinks` says
            when; of the latter, those that are so where the layer begins).
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

    kind: ClassVar[str] = "eah"
    reads_images: ClassVar[bool] = True

    layers: tuple[int, ...] = (1,)
    definition: Definition = "visible"
    beta: float | None = None
    gamma: float | None = None
    donor: DonorRule | int | DonorFunction = "densest"
    recipients: Literal["all"] | tuple[int, ...] = "all"
    steps: Steps = "prefill"
    seed: int | tuple[int, ...] = 0
    items: Items = "all"
    head_0: HeadZero = "eligible"
    columns: SinkColumns = "all"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        check_choice("definition", self.definition, Definition)
        check_choice("items", self.items, Items)
        check_choice("head_0", self.head_0, HeadZero)
        check_choice("columns", self.columns, SinkColumns)
        donor = to_int(self.donor)
        if callable(self.donor):
            self._check_function()
        elif donor is None:
            more = ", a head index or a function"
            check_choice("donor", self.donor, DonorRule, more=more)
        elif not 0 <= donor < 2**63:
            msg = f"donor head must be 0 or more, got {show_value(donor)}"
            raise SettingsError(msg)
        else:
            object.__setattr__(self, "donor", donor)
        object.__setattr__(self, "layers", check_indices("layers", self.layers))
        if not isinstance(self.recipients, str) or self.recipients != "all":
            chosen = check_indices("recipients", self.recipients)
            object.__setattr__(self, "recipients", chosen)
        object.__setattr__(self, "seed", _check_seed(self.seed))
        given = DEFAULT_BETA[self.definition] if self.beta is None else self.beta
        beta = to_float(given)
        if beta is None or beta < 0:
            msg = f"beta must be a number of 0 or more, got {show_value(given)}"
            raise SettingsError(msg)
        object.__setattr__(self, "beta", beta)
        if self.gamma is None:
            return
        gamma = to_float(self.gamma)
        if gamma is None or not 0 < gamma <= 1:
            got = show_value(self.gamma)
            msg = f"gamma is a share of the image columns in (0, 1], got {got}"
            raise SettingsError(msg)
        object.__setattr__(self, "gamma", gamma)

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

    @property
    def needs_scores(self) -> bool:
        """Whether the choice of donor depends on sink densities."""
        return callable(self.donor) or self.donor in ("densest", "sparsest", "shuffled")

    @property
    def reads_kind(self) -> SinkColumns:  # type: ignore[override]
        """Which kind of sinks the choice of donor depends on."""
        return self.columns if self.needs_scores else "all"

    @property
    def donor_name(self) -> str:
        """What the donor is called: a rule, `head 3`, or a function's name."""
        if callable(self.donor):
            return getattr(self.donor, "__name__", type(self.donor).__name__)
        return f"head {self.donor}" if isinstance(self.donor, int) else self.donor

    @property
    def has_donor_head(self) -> bool:
        """Whether one head donates: not under `"mean"` and `"uniform"`."""
        return self.donor not in ("mean", "uniform")

    @property
    def remakes_pattern(self) -> bool:
        """Whether the donated pattern is no head's own, so that it must be built."""
        return self.donor in ("mean", "uniform", "shuffled")

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """Whether its donors are chosen from the prompt."""
        return self.needs_scores

    def _check_function(self) -> None:
        """Refuse settings that a function would have to know of."""
        if self.gamma is not None or self.head_0 != "eligible":
            msg = (
                "gamma and head_0 belong to the densest donor: a function chooses by "
                "itself, and returns -1 for an item without a donor"
            )
            raise SettingsError(msg)
        try:
            rule: Any = self.donor
            inspect.signature(rule).bind(None, None, layer=0)
            fits = not isinstance(self.donor, type)  # whose calls make no tensors
        except (TypeError, ValueError):  # other arguments, or nobody knows which
            fits = False
        if not fits:
            msg = (
                "a donor function is called as donor(scores, density, layer=layer): "
                f"got {show_value(self.donor)}; write a function of these"
            )
            raise SettingsError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as a mapping; a function by its name and source's hash.

        Raises:
            SettingsError: If the donor is a function without readable source.
        """
        donor = describe_plugin(self.donor) if callable(self.donor) else self.donor
        plain = replace(self, donor="densest") if callable(self.donor) else self
        written = {**Intervention.to_dict(plain), "donor": donor}
        if self.columns == "all":  # as files say it that know no kinds
            del written["columns"]
        return written

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EAH":
        """Make settings from a mapping, as JSON gives it back.

        Raises:
            SettingsError: If a key is unknown, or a function was not imported.
        """
        values = check_mapping("settings of EAH", values)
        donor = values.get("donor")
        if isinstance(donor, Mapping):
            values = {**values, "donor": find_plugin(donor)}
        # Not super(), as above.
        return Intervention.from_dict.__func__(cls, values)  # type: ignore[attr-defined, no-any-return]

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers to patch."""
        return [anatomy.site(layer) for layer in self.layers]

    def check_fits(self, *, n_heads: int, d_model: int = 0) -> None:
        """Check that heads named in the settings exist in a model."""
        del d_model
        named = [] if self.recipients == "all" else list(self.recipients)
        if isinstance(self.donor, int):
            named.append(self.donor)
        beyond = [head for head in named if head >= n_heads]
        if beyond:
            msg = f"heads {beyond} do not exist: the model has heads 0 to {n_heads - 1}"
            raise SettingsError(msg)

    def why_not_in_tower(self) -> str:
        """Say what the settings ask for that only a prompt has."""
        if self.definition != "visible":
            return (
                f'definition="{self.definition}" counts the tokens of a causal prompt; '
                'use definition="visible"'
            )
        if self.columns != "all":
            return f'columns="{self.columns}" are kinds of the decoder\'s image columns'
        if self.items != "all":
            return 'items="first" means the first prompt of a batch'
        return ""

    def check_late_start(self, step: int) -> None:
        """Check that it patches every step, from donors that need no scores."""
        if self.steps == "prefill":
            msg = (
                f'called at step {step}, but steps="prefill" patches the prompt, which '
                'step 0 reads; call it at step 0, or use steps="all"'
            )
            raise UnsupportedError(msg)
        if self.needs_scores:
            msg = (
                f"called first at step {step}, but the {self.donor_name} donor is "
                "chosen from the prompt, which step 0 reads; call it from step 0 on, "
                "as in `for _ in tracer.iter[:]`, or name a head, as in EAH(donor=0)"
            )
            raise UnsupportedError(msg)

    def learn(self, point: PatchPoint, stream: Tensor | None) -> LayerPatch:
        """Score the layer, if the donor rule asks for it, and choose donors."""
        del stream
        scores = None
        if self.needs_scores:
            scores = score_call(point.call, point.prompt, definition=self.definition)
            if self.columns != "all":
                scores = scores.only(point.sinks_of_kind())
        queries = point.call.queries
        return self.choose_donors(
            scores,
            (queries.shape[0], queries.shape[1]),
            layer=point.layer,
            device=queries.device,
        )

    def choose_donors(
        self,
        scores: ColumnScores | None,
        batch_heads: tuple[int, int],
        *,
        layer: int,
        device: torch.device,
    ) -> LayerPatch:
        """Choose the donors of a layer from its scores, or without where none count.

        Args:
            scores: The layer's scores; None where `needs_scores` is false.
            batch_heads: How many batch items and query heads there are.
            layer: The decoder layer, for its own random draws.
            device: Where the donors are wanted.

        Returns:
            Who donates in each item, and which items are patched.
        """
        density = None if scores is None else scores.density(float(self.beta or 0.0))
        n_batch, n_heads = batch_heads
        items = torch.arange(n_batch, device=device)
        wanted = items == 0 if self.items == "first" else items >= 0
        if not self.has_donor_head:
            nobody = torch.full((n_batch,), -1, device=device)
            return LayerPatch(layer, nobody, wanted, density, scores)
        if callable(self.donor):
            donors = ask_function(self.donor, scores, density, layer=layer)
        else:
            rule: Any = "densest" if self.donor == "shuffled" else self.donor
            unscored = torch.zeros(n_batch, n_heads, device=device)
            donors = choose_donors(
                unscored if density is None else density,
                rule=rule,
                gamma=self.gamma,
                seed=layer_seed(self, layer),
                head_0=self.head_0,
            )
        donors = donors.masked_fill(~wanted, -1)
        return LayerPatch(layer, donors, donors >= 0, density, scores)

    def apply_at(
        self, point: PatchPoint, *, recipients: HeadMask | None = None
    ) -> None:
        """Give the recipients of one layer what is donated.

        Args:
            point: The attention call; an answer's rows that follow the prompt in the
                same forward pass are left alone where only the prefill is patched.
            recipients: The heads that receive in each item; those of the settings
                when None.
        """
        patch: LayerPatch = point.kept
        if recipients is None:
            recipients = self.recipient_mask(point.call.queries)
        rows = None
        asked = point.prompt.prompt_mask
        if self.steps == "prefill" and asked is not None:
            rows = asked[:, : point.call.queries.shape[2]]
        if not self.remakes_pattern:
            point.broadcast(patch.donors, recipients=recipients, rows=rows)
            return
        make = self.donated(patch, image_mask=point.image_mask)

        def change(block: PatternBlock, rows: RowIndex) -> Tensor:
            del rows
            return make(block)

        point.attend(point.mark(patch.patched, recipients, rows), change=change)

    def recipient_mask(self, heads: Tensor) -> HeadMask | None:
        """Mark the heads that receive; None for all.

        Args:
            heads: Any tensor `[batch head ...]` of the layer.
        """
        if self.recipients == "all":
            return None
        mask = torch.zeros(heads.shape[1], dtype=torch.bool, device=heads.device)
        mask[list(self.recipients)] = True
        return mask.expand(heads.shape[0], -1)

    def donated(
        self, patch: LayerPatch, *, image_mask: ColumnMask
    ) -> Callable[[PatternBlock], Tensor]:
        """Make the map from a block of the model's pattern to the donated one."""
        seed = layer_seed(self, patch.layer)
        return make_pattern(self.donor, patch, image_mask=image_mask, seed=seed)

    def repeat(self, kept: LayerPatch, n_rows: int) -> LayerPatch:
        """Repeat one item's donor for every row of a batch of copies."""
        return replace(
            kept,
            density=None,  # what it was chosen by is not needed any more
            scores=None,
            donors=kept.donors.expand(n_rows),
            patched=kept.patched.expand(n_rows),
        )

    def of_item(self, item: int, n_items: int) -> "EAH | None":
        """Find the settings that give an item alone the patch it has in its batch.

        Raises:
            InputError: If there is not one seed for each item.

        Example:
            >>> EAH(donor="random", seed=(5, 6)).of_item(1, 2).seed
            6
            >>> EAH(items="first").of_item(1, 2) is None
            True
        """
        if self.items == "first" and item > 0:
            return None
        if isinstance(self.seed, int):
            return self
        if len(self.seed) != n_items:
            msg = f"expected a seed for each of {n_items} items, got {len(self.seed)}"
            raise InputError(msg)
        return replace(self, seed=self.seed[item])

    def report(self, learned: dict[int, Any]) -> "EAHPatch":
        """Collect who donated in each layer."""
        return EAHPatch(self, tuple(learned.values()))


@dataclass(frozen=True, eq=False, repr=False)
class EAHPatch(ModelResult):
    """What EAH did in a forward pass, by layer.

    Attributes:
        eah: The settings.
        layers: What it did in each patched layer, in order.
        tower: Whose layers these are; see `Patch`.
    """

    eah: EAH
    layers: tuple[LayerPatch, ...]
    tower: Tower = field(default="language", kw_only=True)

    def _about(self) -> str:
        named = ", ".join(str(patch.layer) for patch in self.layers) or "none"
        n_items = len(self.layers[0].donors) if self.layers else 0
        items = f"{n_items} item{'' if n_items == 1 else 's'}"
        plural = "" if len(self.layers) == 1 else "s"
        return f"{items}, layer{plural} {named}{of_tower(self.tower)}"

    def frame(self) -> "pd.DataFrame":
        """List every head of the patched layers, or the donors where none was scored.

        Returns:
            Columns `item layer head name density donor patched`; of a layer whose
            donor rule needs no scores the donors alone, without a density. `head` is
            empty where no head donates.
        """
        from eah_interp.interventions.reports import list_layers_heads

        return list_layers_heads(self.layers)

    def _first(self, k: int) -> "pd.DataFrame":
        from eah_interp.interventions.reports import list_donors

        return list_donors(self.layers, k)

    def plot(self, item: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one item's sink density by patched layer and head, donors framed.

        Args:
            item: Which batch item.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            UnsupportedError: If no score was needed, so that there are no densities.
            InputError: If there is no such item.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.interventions.reports import plot_densities

        return plot_densities(self.layers, item, ax=ax)

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


def _check_seed(seed: object) -> int | tuple[int, ...]:
    """Check that a seed is an integer, or one for each item; make it plain.

    Raises:
        SettingsError: If it is not, or too large for a generator of torch's.
    """
    seeds, one = to_ints(seed), to_int(seed)
    # Layers multiply it (`layer_seed`), and torch takes 64 bits.
    if seeds is None or max(map(abs, seeds)) >= 2**53:
        msg = (
            "seed must be an integer, or one for each batch item, below 2**53 in size, "
            f"got {show_value(seed)}"
        )
        raise SettingsError(msg)
    return seeds if one is None else one
