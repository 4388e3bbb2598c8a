"""Answers that are sampled, each with draws of its own, whatever batch it stands in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def number_draws(seed: int, places: Sequence[int]) -> list[int]:
    """Give each item of a study a seed of its own.

    Args:
        seed: The study's.
        places: Of the items among all of the study's.

    Example:
        >>> number_draws(2, [0, 7])
        [2000006, 2000013]
    """
    # A prime far above the number of items: no two seeds share an item's draws.
    return [1_000_003 * seed + place for place in places]


class ItemDraws(TorchFunctionMode):
    """Draw every row of a batch from a generator of its own, while this is entered.

    `generate` draws next tokens of a whole batch at once, so that a row's tokens depend
    on which rows stand before it. In here row `i` is drawn as if it stood alone after
    `torch.manual_seed(seeds[i])`: an answer is the same in any batch, and under two
    conditions it is drawn with the same numbers.

    Args:
        seeds: One for each row.

    Example:
        >>> even = torch.full((2, 100), 0.01)
        >>> with ItemDraws([5, 6]):
        ...     both = torch.multinomial(even, 1)
        >>> with ItemDraws([6]):
        ...     alone = torch.multinomial(even[:1], 1)
        >>> bool(both[1] == alone[0])
        True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Draw rows one by one; whatever else torch is asked for goes through."""
        del types
        given = kwargs or {}
        rows = args[0] if args else given.get("input")
        is_ours = func in (torch.multinomial, Tensor.multinomial) and (
            isinstance(rows, Tensor)
            and rows.ndim == 2
            and len(rows) == len(self._generators)
            and given.get("generator") is None
        )
        if not is_ours:
            return func(*args, **given)
        assert isinstance(rows, Tensor)
        # On the CPU, where every machine has the same generator.
        there, more = rows.cpu(), {k: v for k, v in given.items() if k != "input"}
        drawn = [
            func(there[at : at + 1], *args[1:], **{**more, "generator": generator})
            for at, generator in enumerate(self._generators)
        ]
        return torch.cat(drawn).to(rows.device)
