"""The vision tower's attention by explicit loops, in plain transformers.

The tower's eager attention function is replaced in its modelling module: what each call
is given is noted, its pattern is made head by head, edited, and mixed with the values.
A tower that packs images calls it for each part of the sequence; the parts are put side
by side, patterns along the diagonal.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.hooked import TOWER_OF

Edit = Callable[[Tensor, int], Tensor]
"""From what a call has, and the first token that it is about, to something else."""

POINTS = ("queries", "keys", "values", "attention_probabilities", "heads_output")


class TowerOracle:
    """A plain eager model whose tower attends as it is told.

    Attributes:
        seen: What each layer's calls had, by point and layer, in order.
    """

    def __init__(
        self,
        family: str,
        plain: nn.Module,
        edits: Mapping[tuple[str, int], Edit] | None = None,
    ) -> None:
        self.plain, self.edits = plain, dict(edits or {})
        self.seen: dict[tuple[str, int], list[Tensor]] = {}
        layers = plain.get_submodule(TOWER_OF[family])
        self.layer_of = {
            id(part): number
            for number, layer in enumerate(layers)
            for part in layer.modules()
        }
        self.homes = {
            sys.modules[type(part).__module__]
            for part in layers.modules()
            if "Attention" in type(part).__name__
        }

    def run(self, encoding: Mapping[str, Tensor]) -> Tensor:
        """Run a forward pass, and return its logits."""
        with torch.no_grad(), self.attending():
            return self.plain(**encoding, use_cache=False).logits

    def meet(self, point: str, layer: int, value: Tensor, start: int) -> Tensor:
        """Note a value, and edit it where that is wanted."""
        self.seen.setdefault((point, layer), []).append(value)
        edit = self.edits.get((point, layer))
        return value if edit is None else edit(value, start)

    def whole(self, point: str, layer: int) -> Tensor:
        """Put what the calls of a layer had side by side."""
        parts = self.seen[point, layer]
        if len(parts) == 1:
            return parts[0]
        if point != "attention_probabilities":
            return torch.cat(parts, 2)
        heads = [
            torch.block_diag(*(part[0, head] for part in parts))
            for head in range(parts[0].shape[1])
        ]
        return torch.stack(heads)[None]

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Replace the eager attention of the tower's modelling modules."""
        # Llama 4 and Phi-4 have a second one, for towers alone.
        kept = [
            (home, name, getattr(home, name))
            for home in self.homes
            for name in vars(home).copy()
            if name.endswith("eager_attention_forward")
        ]
        for home, name, eager in kept:
            setattr(home, name, self.attention(eager))
        try:
            yield
        finally:
            for home, name, eager in kept:
                setattr(home, name, eager)

    def attention(self, eager: Callable[..., tuple[Tensor, Tensor]]) -> object:
        """Make the function that stands in for a module's eager attention."""
        starts: dict[int, int] = {}

        def attend(module, query, key, value, attention_mask, **settings):
            layer = self.layer_of.get(id(module))
            if layer is None:
                return eager(module, query, key, value, attention_mask, **settings)
            start = starts.get(layer, 0)
            starts[layer] = start + query.shape[2]
            query = self.meet("queries", layer, query, start)
            key = self.meet("keys", layer, key, start)
            value = self.meet("values", layer, value, start)
            groups = query.shape[1] // key.shape[1]
            scale = settings.get("scaling") or query.shape[-1] ** -0.5
            patterns = []
            for head in range(query.shape[1]):
                scores = query[:, head] @ key[:, head // groups].mT * scale
                if attention_mask is not None:
                    scores = scores + attention_mask[:, 0]
                patterns.append(scores.float().softmax(-1).to(query.dtype))
            pattern = torch.stack(patterns, 1)
            pattern = self.meet("attention_probabilities", layer, pattern, start)
            mixed = [
                pattern[:, head] @ value[:, head // groups]
                for head in range(query.shape[1])
            ]
            heads = self.meet("heads_output", layer, torch.stack(mixed, 1), start)
            return heads.transpose(1, 2).contiguous(), pattern

        return attend


def add(point: str, delta: Tensor) -> Edit:
    """Make an edit that adds a part of a tensor of all tokens."""

    def edit(value: Tensor, start: int) -> Tensor:
        part = slice(start, start + value.shape[2])
        if point == "attention_probabilities" and value.shape != delta.shape:
            return value + delta[:, :, part, part]
        return value + delta[:, :, part]

    return edit
