"""What all settings of an intervention share: layers, steps, files, where they act."""

import dataclasses
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from eah_interp._types import SinkColumns, Steps, Tower
from eah_interp.arguments import Named, check_mapping
from eah_interp.errors import SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_choice, to_float, to_ints
from eah_interp.interventions.head_lists import HeadList
from eah_interp.interventions.point import PatchPoint
from eah_interp.interventions.stream import StreamPoint, TowerPoint
from eah_interp.kinds import needs_source, register_by_source
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite, StreamSite
from eah_interp.results import ModelResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layers = tuple[int, ...] | str
"""Decoder layers, counted from 0; or slices and indices in a text, ends in layers or
percent of the depth: `"2:"`, `":-1"`, `"1,56%:"`."""

Settings = TypeVar("Settings", bound="Intervention")

_END = r"(-?\d+|\d+%)"
_PART = rf"(?:{_END}?:{_END}?|{_END})"
_SLICES = re.compile(rf"{_PART}(?:,{_PART})*")


@dataclass(frozen=True, kw_only=True)
class Intervention(metaclass=Named):
    """Settings of something done to a run: what `intervene` and `edit` take.

    It acts at attention calls (`find_sites`, `apply_at`), or on what layers and their
    MLPs return (`find_streams`, `apply_to_stream`), or the tower (`apply_to_tower`).

    Attributes:
        steps: `"all"`, or `"prefill"`: rows that a generation reads after its prompt
            stay as they are.
    """

    kind: ClassVar[str]
    """Its name in files."""

    needs_prompt: ClassVar[bool] = False
    """Whether it learns something from the prompt that later steps need."""

    reads_stream: ClassVar[bool] = False
    """Whether it learns it from the residual stream that enters the layer."""

    reads_images: ClassVar[bool] = False
    """Whether it acts on image columns, so that a prompt without any is a mistake."""

    reads_kind: ClassVar[SinkColumns] = "all"
    """Which kind of sinks it has to know; `"all"` where none."""

    is_fitted: ClassVar[bool] = True
    """Whether all is known that `fit` finds on the very items."""

    acts_on_streams: ClassVar[bool] = False
    """Whether it acts on what layers or their MLPs return (`find_streams`)."""

    steps: Steps = "all"

    def __post_init__(self) -> None:
        check_choice("steps", self.steps, Steps)

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the attention calls that it changes, in the order of a forward pass.

        Raises:
            SettingsError: If a layer does not exist.
            ModelError: If a layer has no attention.
        """
        raise NotImplementedError

    def find_streams(self, anatomy: Anatomy) -> list[StreamSite]:
        """Find the layers whose output, or whose MLP's, it changes.

        Asked only where it `acts_on_streams`.

        Raises:
            SettingsError: If a layer does not exist.
            ModelError: If a layer has no such output.
        """
        raise NotImplementedError

    def why_not_in_tower(self) -> str:
        """Say why it cannot act at the attention calls of the vision tower.

        There all rows are patches of an image (and its class tokens), which all see
        each other; no row is a word's, and none is read last.

        Returns:
            A sentence; empty where it can, as of `EAH` and `Ablation`.
        """
        return (
            "it was made for the language model's prompts; expected EAH, Ablation, or "
            "another whose why_not_in_tower() returns ''"
        )

    def fit(self: Settings, model: Any, images: object, prompts: object) -> Settings:
        """Make settings for these very items, where something is found on them first.

        Args:
            model: An LVLM that no edit has patched.
            images: The images, as for `encode`.
            prompts: The prompts, as for `encode`.

        Returns:
            The same kind of settings; these ones where there is nothing to find.
        """
        del model, images, prompts
        return self

    @property
    def fits_itself(self) -> bool:
        """Whether `fit` finds what is found on the items; it does nothing here."""
        return type(self).fit is not Intervention.fit

    def check_fitted(self) -> None:
        """Check that what has to be found on the very items was found.

        Raises:
            SettingsError: If not.
        """
        if not self.is_fitted:
            msg = (
                f"{type(self).__name__} was not fitted: what it needs is found on the "
                "very items that it is used on; call .fit(model, images, prompts), and "
                "use the settings that it returns"
            )
            raise SettingsError(msg)

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Check that what the settings name exists in a model.

        Raises:
            SettingsError: If not.
        """
        raise NotImplementedError

    def controls(self) -> Mapping[str, "Intervention"]:
        """List settings of the same kind that a study compares with these, by name."""
        return {}

    def learn(self, point: PatchPoint, stream: Tensor | None) -> Any:
        """Learn what later steps need, while the prompt is read.

        Args:
            point: The attention call.
            stream: What entered the layer, if the settings read it.

        Returns:
            A tensor whose first axis is the batch, or None.
        """
        del point, stream
        return None

    def apply_at(self, point: PatchPoint) -> None:
        """Change one attention call, by the methods of `PatchPoint`."""
        raise NotImplementedError

    def apply_to_stream(self, point: StreamPoint) -> None:
        """Change what one layer, or its MLP, returns: by `StreamPoint.write`."""
        raise NotImplementedError

    def apply_to_tower(self, point: TowerPoint) -> None:
        """Change what the vision tower returns: by `TowerPoint.write`."""
        raise NotImplementedError

    def repeat(self, kept: Any, n_rows: int) -> Any:
        """Repeat what was learned from one item for every row of a batch of copies."""
        return kept if kept is None else kept.expand(n_rows, *kept.shape[1:])

    def of_item(self: Settings, item: int, n_items: int) -> Settings | None:
        """Find the settings that give an item alone the patch it has in its batch.

        Returns:
            These settings; None where the item would not be patched.
        """
        del item, n_items
        return self

    def report(self, learned: dict[int, Any]) -> Any:
        """Report what was done in a forward pass.

        Args:
            learned: What was learned from the prompt, by layer, in order.
        """
        # Detached: a copy of what was done needs no graph of the run.
        known = {
            k: value.detach() if isinstance(value, Tensor) else value
            for k, value in learned.items()
            if value is not None
        }
        return Patch(self, tuple(learned), known)

    def check_late_start(self, step: int) -> None:
        """Check that a patch can begin after the prompt was read.

        Raises:
            UnsupportedError: If it patches the prompt, or learns from it.
        """
        if self.steps == "prefill" or self.needs_prompt:
            msg = (
                f"{type(self).__name__} was called first at step {step}, but it needs "
                "the prompt, which step 0 reads; call it from step 0 on, as in "
                "`for _ in tracer.iter[:]`"
            )
            raise UnsupportedError(msg)

    @classmethod
    def from_dict(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
        """Make settings from a mapping, as JSON gives it back.

        Raises:
            SettingsError: If it is no mapping, a key is unknown, or one is missing.
        """
        values = check_mapping(f"settings of {cls.__name__}", values)
        fields = {item.name: item for item in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(fields)))
        missing = [
            name
            for name, item in fields.items()
            if item.default is dataclasses.MISSING and name not in values
        ]
        if unknown or missing:
            what = f"unknown settings {', '.join(unknown)}" if unknown else ""
            gaps = f"no {', '.join(missing)}" if missing else ""
            msg = (
                f"{cls.__name__}: {' and '.join(filter(None, [what, gaps]))}: expected "
                f"{', '.join(sorted(fields))}"
            )
            raise SettingsError(msg)
        return cls(**{name: _tuples(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as a mapping that JSON can hold."""
        return {
            item.name: _lists(getattr(self, item.name))
            for item in dataclasses.fields(self)
        }


@dataclass(frozen=True, eq=False, repr=False)
class Patch(ModelResult):
    """What an intervention did in a forward pass.

    Attributes:
        settings: The settings.
        layers: The layers that it was at, in order.
        learned: What it learned from the prompt, by layer: VAR's sink tokens, `[batch,
            position]`; a mean ablation's means, `[batch, 1, head, d_value]`.
        tower: Whose layers these are: the `"language"` model's, or those of the
            `"vision"` tower, whose items are the images and tiles that it sees.
    """

    settings: Intervention
    layers: tuple[int, ...]
    learned: dict[int, Tensor]
    tower: Tower = field(default="language", kw_only=True)

    def _about(self) -> str:
        layers = ", ".join(map(str, self.layers)) or "none"
        layers += of_tower(self.tower)
        learned = [
            f"{list(value.shape)} in layer {layer}"
            for layer, value in self.learned.items()
        ]
        what = f"; learned {', '.join(learned)}" if learned else "; nothing learned"
        return f"acted in layers {layers}{what}"

    def frame(self) -> "pd.DataFrame":
        """List what was learned from the prompt, or the layers where nothing was.

        Returns:
            Columns `layer item index value`: an item's numbers in a row, `index` the
            place in its flattened tensor (of VAR a position); a layer in which nothing
            was learned has one row, with the layer alone.
        """
        from eah_interp.interventions.reports import list_learned

        return list_learned(self.layers, self.learned)

    def _first(self, k: int) -> "pd.DataFrame":
        from eah_interp.interventions.reports import list_first_learned

        return list_first_learned(self.layers, self.learned, k)

    def plot(self, layer: int | None = None, *, ax: "Axes | None" = None) -> "Figure":
        """Draw what one layer's patch learned, a line for each item.

        Args:
            layer: Which decoder layer; the first that learned something when None.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            UnsupportedError: If nothing was learned, so that there is nothing to draw.
            SettingsError: If that layer has learned nothing, or `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.interventions.reports import plot_learned

        return plot_learned(self, layer, ax=ax)


@dataclass(frozen=True, kw_only=True)
class LayersIntervention(Intervention):
    """Settings of something done in some layers, in whatever model.

    Attributes:
        layers: Indices, or a slice.
    """

    layers: Layers = ":"

    def __post_init__(self) -> None:
        # Not super(): a class that travelled to a server as source has no cell for it.
        Intervention.__post_init__(self)
        object.__setattr__(self, "layers", check_layers(self.layers))

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the layers."""
        return find_layers(self.layers, anatomy)

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """Fit any model: layers are looked up by `find_sites`."""
        del n_heads, d_model


register_by_source(Intervention)


def of_tower(tower: Tower) -> str:
    """Say whose layers are meant, where they are not the language model's."""
    return "" if tower == "language" else f" of the {tower} tower"


def known_kinds() -> dict[str, type[Intervention]]:
    """List the kinds of intervention that have been imported, by their name in files.

    Example:
        >>> import eah_interp.interventions
        >>> known_kinds()["pai"].__name__
        'PAI'
    """
    found: dict[str, type[Intervention]] = {}
    pending: list[type[Intervention]] = [Intervention]
    while pending:
        kind = pending.pop(0)
        pending.extend(kind.__subclasses__())
        if isinstance(getattr(kind, "kind", None), str):
            found[kind.kind] = kind
    return found


def our_kinds() -> dict[str, type[Intervention]]:
    """List the kinds that this package defines: EAH's, then the others by name.

    Example:
        >>> import eah_interp.interventions
        >>> list(our_kinds())[:3]
        ['eah', 'ablation', 'ad_hh']
    """
    pending: list[type[Intervention]] = [Intervention]
    found: dict[str, type[Intervention]] = {}
    while pending:
        kind = pending.pop(0)
        pending.extend(kind.__subclasses__())
        if "kind" in vars(kind) and not needs_source(kind):
            found[kind.kind] = kind
    return dict(sorted(found.items(), key=lambda one: (one[0] != "eah", one[0])))


def find_layers(layers: Layers, anatomy: Anatomy) -> list[AttentionSite]:
    """Find layers by index, or those of a slice that have attention to change.

    Raises:
        SettingsError: If a layer does not exist, or a slice has none.
        ModelError: If a named layer has no attention.
    """
    if not isinstance(layers, str):
        return [anatomy.site(layer) for layer in layers]
    chosen = set(slice_layers(layers, anatomy))
    sites = [anatomy.sites[layer] for layer in sorted(chosen & set(anatomy.sites))]
    if not sites:
        msg = (
            f"layers {show_value(layers)} are none of the model's {anatomy.n_layers} "
            "that have attention; name them, as in layers=(1,)"
        )
        raise SettingsError(msg)
    return sites


def slice_layers(layers: str, anatomy: Anatomy) -> list[int]:
    """List the decoder layers of a slice, whatever they have."""
    return sorted(_read_slices(layers, anatomy.n_layers))


def check_layers(layers: object) -> Layers:
    """Check that layers are indices or a slice, and put indices in order.

    Raises:
        SettingsError: If they are not.
    """
    if isinstance(layers, str):
        if _SLICES.fullmatch(layers) is None:
            got = show_value(layers)
            msg = f"layers must be indices or a slice such as '2:', got {got}"
            raise SettingsError(msg)
        return layers
    return check_indices("layers", layers)


def list_layers(layers: object) -> list[int]:
    """List layers in order, each once, for what only reads them.

    Raises:
        SettingsError: If they are not integers.
    """
    found = to_ints(list(layers) if isinstance(layers, Set) else layers)
    if found is None:
        msg = f"layers must be indices of 0 or more, got {show_value(layers)}"
        raise SettingsError(msg)
    return sorted(set(found))


def check_indices(name: str, values: object) -> tuple[int, ...]:
    """Check that indices are there, 0 or more, and not repeated; put them in order.

    Integers of any kind (of NumPy, pandas, torch) become plain ones.

    Raises:
        SettingsError: If not.
    """
    found = to_ints(values)
    # JSON, and what numbers layers, hold no larger ones.
    fit = found is not None and all(0 <= index < 2**63 for index in found)
    if found is None or not fit or len(set(found)) != len(found):
        msg = (
            f"{name} must be indices of 0 or more, each once, got {show_value(values)}"
        )
        raise SettingsError(msg)
    return tuple(sorted(found))


MOST = 1e6
"""What a setting multiplies or adds is at most this: far beyond any use, and far from
where float32 ends, beyond which logits would be NaN without a word."""


def check_number(
    name: str, value: object, *, least: float, most: float = MOST
) -> float:
    """Check that a number is in its range.

    Raises:
        SettingsError: If it is not.
    """
    number = to_float(value)
    if number is None or not least <= number <= most:
        got = show_value(value)
        msg = f"{name} must be a number from {least:g} to {most:g}, got {got}"
        raise SettingsError(msg)
    return number


def _read_slices(text: str, n_layers: int) -> set[int]:
    """Find the layers that a text means in a decoder of so many."""
    found: set[int] = set()
    for part in text.split(","):
        first, colon, last = part.partition(":")
        start, stop = _read_end(first, n_layers), _read_end(last, n_layers)
        if not colon:  # one layer, which -1 counts from the end
            stop = None if start == -1 or start is None else start + 1
        found |= set(range(n_layers)[slice(start, stop)])
    return found


def _read_end(text: str, n_layers: int) -> int | None:
    if not text.endswith("%"):
        return int(text) if text else None
    # Half a layer counts as one: round() would take it to the even neighbour.
    return int(int(text[:-1]) * n_layers / 100 + 0.5)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == set(HeadList.KEYS):
        return HeadList.from_dict(value)
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, HeadList):
        return value.to_dict()
    return list(map(_lists, value)) if isinstance(value, tuple) else value
