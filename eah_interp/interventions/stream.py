"""What a layer, or its MLP, returns while an intervention is at it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask, Steps
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


def find_step(model: Any, site: StreamSite) -> int:
    """Find which forward pass of the run a worker stands in, counted from 0."""
    layer = envoy_at(model, f"{model.anatomy.layers}.{site.layer}")
    side = "input" if site.place == "input" else "output"
    step: int = Mediator.current("a layer").wanted(f"{layer.path}.{side}")
    return step
