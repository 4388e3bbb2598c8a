"""What EAH donates to whom: scores, random draws, and the patterns of its controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eah_interp._types import (
    ColumnMask,
    Definition,
    Densities,
    Donors,
)
from eah_interp.errors import SettingsError
from eah_interp.kernels.broadcast import broadcast_pattern
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.replacements import (
    mean_pattern,
    shuffled_pattern,
    uniform_pattern,
)
from eah_interp.kernels.sinks import ColumnScores, stream_column_scores
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt
from eah_interp.lvlm.sequences import SequenceMask
from eah_interp.results import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LayerPatch(Result):
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

    def _about(self) -> str:
        scored = "no scores"
        if self.density is not None:
            scored = f"density of {self.density.shape[1]} heads"
        patched = int(self.patched.sum())
        return f"layer {self.layer}, {patched} of {len(self.donors)} items, {scored}"

    def frame(self) -> "pd.DataFrame":
        """List every head of every item, or the donors alone where none was scored.

        Returns:
            Columns `item layer head name density donor patched`. Where no score was
            needed there is one row for each item, of its donor; `head` is empty where
            no head donates.
        """
        from eah_interp.interventions.reports import list_layers_heads

        return list_layers_heads([self])

    def _first(self, k: int) -> "pd.DataFrame":
        from eah_interp.interventions.reports import list_donors

        return list_donors([self], k)

    def plot(self, item: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one item's sink density by head, the donor framed.

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

        return plot_densities([self], item, ax=ax)


def donors_by_layer(learned: Mapping[int, Any]) -> dict[int, Donors]:
    """Look up who donated in each layer, on the CPU; nobody in other interventions."""
    return {
        layer: kept.donors.cpu()
        for layer, kept in learned.items()
        if isinstance(kept, LayerPatch)
    }


# ---- How donors are found, and what they donate.


def score_call(
    call: AttentionCall, prompt: Prompt, *, definition: Definition
) -> ColumnScores:
    """Score the image columns of one attention call, streamed, without gradients.

    Images and windows of a packed sequence are scored one beside the other, so that no
    mask of all pairs of patches is made.
    """
    mask = call.packing
    if mask is not None and definition == "visible":
        return _score_parts(call, mask, prompt)
    with torch.no_grad():
        parts = call.pattern_inputs(prompt.scored_mask)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        tokens = parts.pop("token_mask")
        return stream_column_scores(
            queries,
            keys,
            image_mask=prompt.image_mask[:, : keys.shape[2]],
            token_mask=tokens,
            definition=definition,
            **parts,
        )


def _score_parts(
    call: AttentionCall, mask: SequenceMask, prompt: Prompt
) -> ColumnScores:
    """Score parts that do not see each other, and put them together again."""
    tokens = mask.part_tokens(call.keys.device)
    whole = Prompt(tokens, tokens)  # a part may have no image column of its own
    found = score_call(call.by_parts(), whole, definition="visible")
    scores, unit = (mask.join(one, axis=2) for one in (found.scores, found.unit))
    columns = prompt.image_mask
    scores = scores.masked_fill(~columns[:, None], 0.0)
    return replace(found, scores=scores, unit=unit, columns=columns)


def ask_function(
    rule: Any, scores: ColumnScores | None, density: Densities | None, *, layer: int
) -> Donors:
    """Let a user's own rule choose donors, and check what it says.

    Raises:
        SettingsError: If it is no head for each item.
    """
    assert scores is not None  # EAH.needs_scores
    assert density is not None
    n_batch, n_heads = density.shape
    found: Any = rule(scores.scores, density, layer=layer)
    is_whole = isinstance(found, Tensor) and not (
        found.is_floating_point() or found.is_complex() or found.dtype == torch.bool
    )
    if not is_whole or found.shape != (n_batch,):
        got = (
            f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
            if isinstance(found, Tensor)
            else type(found).__name__
        )
        msg = (
            f"a donor function returns an integer tensor [{n_batch}], a head for each "
            f"item and -1 for none, got {got}"
        )
        raise SettingsError(msg)
    beyond = found[(found < -1) | (found >= n_heads)].tolist()
    if beyond:
        msg = f"a donor function chose heads {beyond}: expected -1 to {n_heads - 1}"
        raise SettingsError(msg)
    chosen: Donors = found.to(device=density.device, dtype=torch.long)
    return chosen


def layer_seed(eah: Any, layer: int) -> int | list[int]:
    """Give every layer draws of its own."""
    if isinstance(eah.seed, int):
        return eah.seed * 1009 + layer
    return [seed * 1009 + layer for seed in eah.seed]


def make_pattern(
    donor: object,
    patch: LayerPatch,
    *,
    image_mask: ColumnMask,
    seed: int | list[int],
) -> Callable[[PatternBlock], Tensor]:
    """Make the map from a block of the model's pattern to the donated one.

    Args:
        donor: The donor rule.
        patch: Who donates in each item.
        image_mask: True at image tokens, at least as wide as the pattern.
        seed: Of a `"shuffled"` donor's columns.
    """
    if donor == "mean":
        return lambda block: mean_pattern(block.weights)
    if donor == "uniform":

        def even(block: PatternBlock) -> Tensor:
            image = image_mask[:, : block.weights.shape[-1]]
            return uniform_pattern(
                block.weights, image_mask=image, visible=block.visible
            )

        return even
    if donor != "shuffled":
        return lambda block: broadcast_pattern(block.weights, patch.donors)
    priority = column_priority(image_mask, seed)

    def shuffled(block: PatternBlock) -> Tensor:
        width = block.weights.shape[-1]
        return shuffled_pattern(
            block.weights,
            patch.donors,
            image_mask=image_mask[:, :width],
            visible=block.visible,
            priority=priority[:, :width],
        )

    return shuffled


def column_priority(image_mask: ColumnMask, seed: int | list[int]) -> Tensor:
    """Draw a number for each image token, by its place among the image tokens.

    So an item's permutation does not depend on the padding of its batch.
    """
    seeds = [seed] * len(image_mask) if isinstance(seed, int) else seed
    priority = torch.zeros(image_mask.shape)
    for row, (mask, one) in enumerate(zip(image_mask.cpu(), seeds, strict=True)):
        generator = torch.Generator().manual_seed(one)
        priority[row, mask] = torch.rand(int(mask.sum()), generator=generator)
    return priority.to(image_mask.device)


def seed_items(eah: Any, numbers: list[int]) -> Any:
    """Give each batch item a draw of its own, whatever batch it stands in.

    Args:
        eah: Settings of EAH.
        numbers: A number that stays with each item: its place in a study, say.

    Returns:
        The settings with a seed for each item; as they are where nothing is drawn, or
        where each item has a seed already.

    Example:
        >>> from eah_interp.interventions import EAH
        >>> seed_items(EAH(donor="random", seed=2), [0, 7]).seed
        (2000006, 2000013)
        >>> seed_items(EAH(), [0, 7]).seed
        0
    """
    if eah.donor not in ("random", "shuffled") or not isinstance(eah.seed, int):
        return eah
    # A prime far above the number of items: no two seeds share an item's draw.
    seeds = tuple(1_000_003 * eah.seed + number for number in numbers)
    return replace(eah, seed=seeds)
