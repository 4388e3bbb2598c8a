"""What a layer, its MLP, or the tower returns while an intervention is at it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask, Steps
from eah_interp.errors import InputError
from eah_interp.lvlm.anatomy import StreamSite, envoy_at
from eah_interp.lvlm.prompt import Prompt, QueryRows, RowMask

_VALUES = {"input": "layers_input", "mlp": "mlps_output", "layer": "layers_output"}
"""The hook points of each place, by their names in `lvlm/hook_points.py`."""


@dataclass
class StreamPoint:
    """What one layer, or its MLP, returns in one forward pass.

    Attributes:
        layer: The decoder layer.
        place: `"input"`: what enters the layer; `"mlp"`: what its MLP adds; `"layer"`:
            what the layer returns.
        output: What it returns, `[batch, row, d_model]`, as the model made it.
        rows: Its rows, by kind.
        prompt: The prompt's tokens, as wide as what the rows can see.
        values: The hook points of this kind, where it is written.
        width: Tokens of the prompt.
        first: Position of its first row, counted from the prompt's first token.
        marks: What was seen of kinds of sinks before the decoder, where it is needed.
    """

    layer: int
    place: str
    output: Float[Tensor, "batch row d_model"]
    rows: QueryRows
    prompt: Prompt
    values: Any
    width: int
    first: int = 0
    marks: Any = None

    @classmethod
    def at(
        cls,
        model: Any,
        site: StreamSite,
        whole: Prompt,
        *,
        find_first: Callable[[], int],
    ) -> "StreamPoint":
        """Stand where a layer returns something.

        Args:
            model: The traced model.
            site: The layer and the place in it.
            whole: The tokens of the run's prompt.
            find_first: Finds the position of the pass's first row, once the pass has
                come to the layer; before that, it would be of the pass before.
        """
        values = getattr(model, _VALUES[site.place])
        output: Tensor = values[site.layer]
        first = find_first()
        n_batch, n_rows, _ = output.shape
        width = whole.image_mask.shape[1]
        beyond = max(0, first + n_rows - width)
        if beyond and first < width and whole.prompt_mask is None:
            # Assisted decoding reads its first guesses together with the prompt.
            whole = whole.limit(torch.ones_like(whole.image_mask))
        seen = max(width, first + n_rows)
        prompt = whole.fit_size(n_batch, seen, device=output.device, generated=beyond)
        rows = QueryRows.of_size(prompt, n_rows, seen, width=width, first=first)
        place = {"width": width, "first": first}
        return cls(site.layer, site.place, output, rows, prompt, values, **place)

    @property
    def image_mask(self) -> ColumnMask:
        """True at columns that hold image tokens."""
        return self.prompt.image_mask

    def rows_of(self, steps: Steps) -> RowMask:
        """Mark the rows of the prompt, or these and the answer's."""
        if steps == "prefill":
            return self.rows.prompt
        return self.rows.prompt | self.rows.answer

    def write(self, new: Tensor, rows: RowMask) -> None:
        """Write what is returned in some rows.

        Args:
            new: `[batch, row, d_model]`.
            rows: True where it is written.
        """
        own = self.output
        self.output = torch.where(rows[..., None], new.to(own.dtype), own)
        self.values[self.layer] = self.output


@dataclass
class TowerPoint:
    """What the vision tower returns, before the projector or merger.

    Attributes:
        model: The traced model.
        tokens: `vision_output`, `[..., d_vision]`, as the model made it.
        prompt: The run's prompt.
    """

    model: Any
    tokens: Float[Tensor, "*place d_vision"]
    prompt: Prompt

    @property
    def image_mask(self) -> ColumnMask:
        """True at the prompt's image tokens."""
        return self.prompt.image_mask

    def check_map(self, found: Any) -> None:
        """Check that a map of tokens to columns is one of this run's items.

        Raises:
            InputError: If the run has other tokens, or other image columns.
        """
        got, columns = tuple(self.tokens.shape[:-1]), self.image_mask
        if got == found.shape and torch.equal(columns.cpu(), found.columns):
            return
        msg = (
            "the tower's tokens were mapped for other items: expected tokens of shape "
            f"{found.shape} and {_count(found.columns)} image columns by item, where "
            f"they were, got {got} and {_count(columns)}; call .fit(model, images, "
            "prompts) with the items of this run, in one batch and without beams"
        )
        raise InputError(msg)

    def write(self, new: Tensor) -> None:
        """Write other tokens in their place.

        Args:
            new: Of the shape of `tokens`.
        """
        self.tokens = new.to(self.tokens.dtype)
        self.model.vision_output = self.tokens


def _count(columns: ColumnMask) -> list[int]:
    counts: list[int] = columns.sum(-1).tolist()
    return counts


def find_step(model: Any, site: StreamSite) -> int:
    """Find which forward pass of the run a worker stands in, counted from 0."""
    anatomy = model.anatomy
    path = f"{anatomy.layers}.{site.layer}"
    if site.place == "vision":
        path = f"{anatomy.vision_layers}.{anatomy.vision_output}"
    layer = envoy_at(model, path)
    side = "input" if site.place == "input" else "output"
    step: int = Mediator.current("a layer").wanted(f"{layer.path}.{side}")
    return step
