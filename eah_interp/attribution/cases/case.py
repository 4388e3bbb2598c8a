"""One question to a model: its inputs, and the numbers that are read off it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eah_interp._types import ColumnMask
from eah_interp.attribution.cases.readouts import Readout
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.teacher import repeat_rows


@dataclass(frozen=True)
class Case:
    """One or more images with prompts, and the numbers to be explained.

    Attributes:
        encoding: The model's inputs; an answer may follow the prompt.
        prompt_mask: True at the prompt's tokens; None where no answer follows.
        readout: Which tokens are read where.
    """

    encoding: Encoding
    prompt_mask: ColumnMask | None
    readout: Readout

    @property
    def n_items(self) -> int:
        """Number of batch items."""
        return int(self.encoding["input_ids"].shape[0])

    @property
    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a forward pass; no loss is wanted."""
        return {k: v for k, v in self.encoding.items() if k != "labels"}

    def copies(self, items: Sequence[int]) -> "Case":
        """Make a batch of copies of items, each with its targets.

        Args:
            items: The item of each row.
        """
        mask = self.prompt_mask
        return Case(
            repeat_rows(self.encoding, items),
            None if mask is None else mask[list(items)],
            self.readout.of_copies(items),
        )
