"""Which token of the vision tower becomes which image column of the decoder.

Between the two stand norms, projectors, mergers, pixel shuffles, pools, resamplers: one
column may be made of many tokens, one token may go into many columns or none. No rule
for a family says which; it is read off the model. A column is made of the tokens whose
change would change it: those at which its gradient is not zero. So that not every
column needs a backward pass of its own, columns are numbered in binary, and each pass
asks for all columns that have a digit; only tokens that go into several columns need
more passes. The decoder's layers are no part of it.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError, ModelError, UnsupportedError
from eah_interp.kernels.patterns import is_abstract
from eah_interp.lvlm.prompt import Prompt
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.lvlm.weights import check_recorded

NO_TOWER = "the model has no vision tower of layers that attend"

RESAMPLED = (
    "each image token is made of all tokens of the tower (a resampler or Q-Former)"
)

_SEED = 0
"""Of the direction in which columns are asked for: any that no norm is blind to."""


def find_place(
    spans: tuple[tuple[ImageSpan, ...], ...], item: int, column: int
) -> tuple[float, float, float, float] | None:
    """Find the region of the image that a column stands for; None where none is known.

    Args:
        spans: Each item's images.
        item: Which batch item.
        column: An image column of it.
    """
    for span in spans[item] if item < len(spans) else ():
        if column in span.columns:
            try:
                return span.place(column)
            except UnsupportedError:  # a grid of which it is not known what it shows
                return None
    return None


def check_some_image(image_mask: ColumnMask) -> None:
    """Check that a batch has an image at all.

    Raises:
        InputError: If it has none.
    """
    if not is_abstract(image_mask) and not bool(image_mask.any()):
        msg = "expected an image in the batch, got none: there is nothing to map"
        raise InputError(msg)


def take_most(
    values: Float[Tensor, " token"],
    links: Int[Tensor, "link 3"],
    *,
    n_items: int,
    n_keys: int,
    missing: float = float("nan"),
) -> Float[Tensor, "batch key"]:
    """Take, at each column, the largest number of the tokens that it is made of.

    Args:
        values: A number for each token.
        links: Token, item and column of each link.
        n_items: Batch items.
        n_keys: Columns of an item.
        missing: What stands at columns that are made of no token.
    """
    place = links[:, 1] * n_keys + links[:, 2]
    whole = values.new_full((n_items * n_keys,), -torch.inf)
    whole = whole.scatter_reduce(0, place, values[links[:, 0]], "amax")
    linked = torch.zeros(n_items * n_keys, dtype=torch.bool, device=values.device)
    linked[place] = True
    return whole.masked_fill(~linked, missing).view(n_items, n_keys)


# ---- In a trace: from the tower's output to the decoder's door, and back.


class TowerReach:
    """The graph from the tower's tokens to the image columns, in the run that makes it.

    Between `begin` and `end` the model's operations are recorded, also where the run
    is without gradients; what it computes is the same.

    Attributes:
        tokens: The tower's tokens, `[..., d_vision]`, cut off what made them.
    """

    def __init__(self, model: Any, tokens: Tensor, passed: Tensor, given: bool) -> None:  # noqa: FBT001
        self.tokens = tokens.detach()
        self._model = model
        self._passed = passed
        self._given = given

    @classmethod
    def begin(cls, model: Any) -> "TowerReach":
        """Read the tower's tokens, and record what is made of them.

        Raises:
            UnsupportedError: In inference mode, or for one of several invokes.
        """
        tokens = model.vision_output
        given = torch.is_grad_enabled()
        check_recorded(
            model._module, instead=": which columns tokens reach is a gradient"
        )
        torch.set_grad_enabled(True)
        # What a caller's own graph, or another worker's reach, is part of stays so.
        start = tokens if tokens.requires_grad else tokens.detach().requires_grad_()
        # A module behind may change its input in place, which no leaf allows.
        passed = start.clone()
        model.vision_output = passed
        return cls(model, tokens, passed, given)

    def end(self, prompt: Prompt) -> tuple[Tensor, str]:
        """Find the links at the decoder's door, and let go of the graph.

        Args:
            prompt: The prompt's tokens.

        Returns:
            Links as in `TowerMap`, and why there are none; empty where there are.

        Raises:
            ModelError: If nothing of the tokens reaches the image columns.
        """
        try:
            stream = self._model.layers_input[0]
            fitted = prompt.fit_size(*stream.shape[:2], device=stream.device)
            found = find_links(stream, self._passed, fitted.image_mask)
        finally:
            # Where it was on already, another worker may have switched it on.
            if not self._given:
                torch.set_grad_enabled(False)
        return found


def find_links(
    stream: Float[Tensor, "batch key d_model"],
    tokens: Float[Tensor, "..."],
    image_mask: ColumnMask,
) -> tuple[Int[Tensor, "link 3"], str]:
    """Find which tokens each image column's gradient is not zero at.

    Args:
        stream: What enters the decoder's first layer, with its graph.
        tokens: The tower's tokens, `[..., d_vision]`, part of that graph.
        image_mask: The image columns.

    Returns:
        Token, item and column of each link, in the order of tokens; and the reason
        where there are none.

    Raises:
        ModelError: If nothing of the tokens reaches the image columns.

    Example:
        >>> tokens = torch.randn(4, 8, requires_grad=True)
        >>> pooled = tokens.view(2, 2, 8).mean(1)
        >>> stream = torch.cat([torch.zeros(1, 8), pooled])[None]
        >>> mask = torch.tensor([[False, True, True]])
        >>> find_links(stream, tokens, mask)[0][:, [0, 2]].tolist()
        [[0, 1], [1, 1], [2, 2], [3, 2]]
    """
    place = image_mask.to(stream.device).nonzero()
    with torch.enable_grad():
        embedded = stream[image_mask.to(stream.device)]
    generator = torch.Generator().manual_seed(_SEED)
    direction = torch.randn(embedded.shape[-1], generator=generator).to(embedded)

    def reached(chosen: Tensor) -> Bool[Tensor, " token"]:
        asked = torch.zeros_like(embedded)
        asked[chosen] = direction
        (gradient,) = torch.autograd.grad(
            embedded, tokens, asked, retain_graph=True, allow_unused=True
        )
        if gradient is None:
            return torch.zeros(tokens.shape[:-1].numel(), dtype=torch.bool)
        return (gradient != 0).flatten(0, -2).any(-1).cpu()

    every = torch.arange(len(place), device=embedded.device)
    if not embedded.requires_grad or not bool(reached(every).any()):
        msg = (
            "nothing at vision_output reaches the image tokens: the layer of the tower "
            "that the config names is not the one that is read, or what follows it "
            "cannot be differentiated"
        )
        raise ModelError(msg)
    if _is_resampled(place, reached):
        return torch.zeros(0, 3, dtype=torch.long), RESAMPLED
    pairs = torch.cat(_decode(every, reached))
    order = (pairs[:, 0] * len(place) + pairs[:, 1]).argsort()
    pairs = pairs[order]
    return torch.cat([pairs[:, :1], place.cpu()[pairs[:, 1]]], 1), ""


def _is_resampled(place: Tensor, reached: Any) -> bool:
    """Tell whether neighbouring columns are made of all the same tokens, and of many.

    Asked of the first two columns of each item, which stand for one image.
    """
    for item in sorted(set(place[:, 0].tolist())):
        own = (place[:, 0] == item).nonzero().flatten()
        if len(own) < 2:
            continue
        one, other = reached(own[:1]), reached(own[1:2])
        if not bool(one.any()):
            continue
        return bool((one == other).all())
    return False


def _decode(chosen: Tensor, reached: Any) -> list[Tensor]:
    """Find the one column of each token by its digits; split where there are several.

    Args:
        chosen: Numbers of columns.
        reached: Tells the tokens that any of some columns is made of.

    Returns:
        Pairs of a token and a column, `[pair, 2]`.
    """
    pairs: list[Tensor] = []
    waiting: list[tuple[Tensor, Tensor | None]] = [(chosen, None)]
    while waiting:
        columns, among = waiting.pop()
        there = reached(columns)
        if among is not None:
            there = there & among
        if not bool(there.any()):
            continue
        number = torch.arange(len(columns))
        value = torch.zeros(len(there), dtype=torch.long)
        several = torch.zeros_like(there)
        for bit in range((len(columns) - 1).bit_length()):
            has = (number >> bit & 1).bool().to(columns.device)
            on, off = reached(columns[has]), reached(columns[~has])
            several = several | (on & off)
            value = value | (on.long() << bit)
        tokens = (there & ~several).nonzero().flatten()
        pairs.append(torch.stack([tokens, columns.cpu()[value[tokens]]], 1))
        several = several & there
        if bool(several.any()):
            # Neighbours part first: a token goes into columns next to each other.
            waiting += [(columns[::2], several), (columns[1::2], several)]
    return pairs
