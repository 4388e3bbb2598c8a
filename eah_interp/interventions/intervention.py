"""What all settings of an intervention share: layers, steps, files, where they act."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import ColumnMask, HeadOutputs, Steps
from eah_interp.errors import SettingsError
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.lvlm.anatomy import Anatomy, AttentionSite
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt, Rows, attend_from, first_row
from eah_interp.lvlm.runs import PatchedCall

# ---- One attention call while an intervention is at it.


RowHeads = Bool[Tensor, "batch query head"]
"""Which heads are changed in which query rows."""


ChangeRows = Callable[[slice, Tensor], Tensor]
"""From some query rows, counted in the whole call, and their weights or logits."""


@dataclass
class PatchPoint:
    """One attention call in one forward pass, and what is known about it.

    Attributes:
        layer: The decoder layer.
        operation: The call in nnsight.
        call: The same, taken apart.
        prompt: Its key columns: pictures, padding.
        rows: Its query rows, by kind.
        step: Which forward pass of the run this is, counted from 0.
        kept: What the intervention learned from the prompt in this layer.
        returned: What the call returned, once it was read.
    """

    layer: int
    operation: PatchedCall
    call: AttentionCall
    prompt: Prompt
    rows: Rows
    step: int
    kept: Tensor | None = None
    returned: Any = None

    def columns(self, prompt_mask: Bool[Tensor, "batch position"]) -> ColumnMask:
        """Make a mask of the prompt's tokens as wide as the call's keys.

        Args:
            prompt_mask: `[batch, position]`; what came later is False.
        """
        prompt = Prompt(prompt_mask, prompt_mask)
        return prompt.fit(self.call, generated=self.step).image_mask

    @property
    def image_mask(self) -> ColumnMask:
        """True at key columns that hold image tokens."""
        return self.prompt.image_mask

    @property
    def output(self) -> HeadOutputs:
        """What the call returns."""
        output: HeadOutputs = self._returned[0]
        return output

    @property
    def _returned(self) -> tuple[Any, ...]:
        # Read once: whoever reads it patches it, and nobody may after that.
        if self.returned is None:
            self.returned = self.operation.output
        returned: tuple[Any, ...] = self.returned
        return returned

    def rows_of(self, steps: Steps) -> Bool[Tensor, "batch query"]:
        """Mark the rows of the prompt, or these and the answer's."""
        if steps == "prefill":
            return self.rows.prompt
        return self.rows.prompt | self.rows.answer

    def replace(self, new: Tensor, where: RowHeads) -> None:
        """Write some heads' outputs in some rows.

        Args:
            new: `[batch query head d_value]`, or its last rows.
            where: True where they are written.
        """
        own = self.output
        start = own.shape[1] - new.shape[1]
        chosen = where[:, start:, :, None]
        mixed = torch.where(chosen, new.to(own.dtype), own[:, start:])
        whole = mixed if start == 0 else torch.cat([own[:, :start], mixed], 1)
        self.operation.output = (whole, *self._returned[1:])

    def attend(
        self,
        where: RowHeads,
        *,
        change: Callable[[PatternBlock, slice], Tensor] | None = None,
        change_logits: ChangeRows | None = None,
    ) -> None:
        """Attend anew in some rows, with changed weights, and write what comes of it.

        Args:
            where: True at the heads and rows that are written; rows before the first
                of them are not computed.
            change: From a block of the pattern, and its rows in the whole call.
            change_logits: From rows in the whole call, and their logits.
        """
        first = first_row(where.any(-1))
        if first == where.shape[1]:
            return

        def moved(rows: slice) -> slice:
            return slice(rows.start + first, rows.stop + first)

        def weights(block: PatternBlock) -> Tensor:
            return block.weights if change is None else change(block, moved(block.rows))

        def logits(rows: slice, given: Tensor) -> Tensor:
            return given if change_logits is None else change_logits(moved(rows), given)

        new = attend_from(
            self.call,
            first,
            token_mask=self.prompt.token_mask,
            change=weights,
            change_logits=logits,
        )
        self.replace(new, where)


Layers = tuple[int, ...] | str
"""Decoder layers, counted from 0; or a slice of them: `"2:"`, `":-1"`, `":"`."""


Settings = TypeVar("Settings", bound="Intervention")


_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Settings of something done at attention calls: what `intervene` and `edit` take.

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

    steps: Steps = "all"

    def __post_init__(self) -> None:
        if self.steps not in get_args(Steps):
            listed = ", ".join(get_args(Steps))
            msg = f"steps must be one of {listed}, got {self.steps!r}"
            raise SettingsError(msg)

    def find_sites(self, anatomy: Anatomy) -> list[AttentionSite]:
        """Find the attention calls that it changes, in the order of a forward pass.

        Raises:
            SettingsError: If a layer does not exist.
            ModelError: If a layer has no attention.
        """
        raise NotImplementedError

    def check_fits(self, *, n_heads: int, d_model: int) -> None:
        """See that what the settings name exists in a model.

        Raises:
            SettingsError: If not.
        """
        raise NotImplementedError

    def learn(self, point: PatchPoint, stream: Tensor | None) -> Tensor | None:
        """Learn what later steps need, while the prompt is read.

        Args:
            point: The attention call.
            stream: What entered the layer, if the settings read it.
        """
        del point, stream
        return None

    def apply_at(self, point: PatchPoint) -> None:
        """Change one attention call."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
        """Make settings from a mapping, as JSON gives it back.

        Raises:
            SettingsError: If a key is unknown, or one is missing.
        """
        fields = {item.name: item for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
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
        return {k: _lists(v) for k, v in dataclasses.asdict(self).items()}


def find_layers(layers: Layers, anatomy: Anatomy) -> list[AttentionSite]:
    """Find layers by index, or those of a slice that have attention to change.

    Raises:
        SettingsError: If a layer does not exist, or a slice has none.
        ModelError: If a named layer has no attention.
    """
    if not isinstance(layers, str):
        return [anatomy.site(layer) for layer in layers]
    chosen = set(range(anatomy.n_layers)[slice(*_ends(layers))])
    sites = [anatomy.sites[layer] for layer in sorted(chosen & set(anatomy.sites))]
    if not sites:
        msg = (
            f"layers {layers!r} are none of the model's {anatomy.n_layers} that have "
            "attention; name them, as in layers=(1,)"
        )
        raise SettingsError(msg)
    return sites


def check_layers(layers: object) -> Layers:
    """See that layers are indices or a slice, and put indices in order.

    Raises:
        SettingsError: If they are not.
    """
    if isinstance(layers, str):
        if _SLICE.fullmatch(layers) is None:
            msg = f"layers must be indices or a slice such as '2:', got {layers!r}"
            raise SettingsError(msg)
        return layers
    return check_indices("layers", layers)


def check_indices(name: str, values: object) -> tuple[int, ...]:
    """See that indices are there, 0 or more, and not repeated; put them in order.

    Raises:
        SettingsError: If not.
    """
    listed = (values,) if isinstance(values, int) else values
    fine = isinstance(listed, tuple | list | range) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0
        for value in listed
    )
    if not fine or not listed or len(set(listed)) != len(listed):  # type: ignore[arg-type, call-overload]
        msg = f"{name} must be indices of 0 or more, each once, got {values!r}"
        raise SettingsError(msg)
    return tuple(sorted(listed))  # type: ignore[call-overload]


def check_number(
    name: str, value: object, *, least: float, most: float = math.inf
) -> float:
    """See that a number is in its range.

    Raises:
        SettingsError: If it is not.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not math.isfinite(number) or not least <= number <= most:
        above = "" if math.isinf(most) else f" and at most {most:g}"
        msg = f"{name} must be a number of at least {least:g}{above}, got {value!r}"
        raise SettingsError(msg)
    return number


def _ends(text: str) -> tuple[int | None, int | None]:
    found = _SLICE.fullmatch(text)
    assert found is not None  # checked when the settings were made
    start, stop = (None if end is None else int(end) for end in found.groups())
    return start, stop


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value
