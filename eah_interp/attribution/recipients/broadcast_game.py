"""A broadcast as a game: what targets are where only some heads receive."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.attribution.cases.batches import in_batches
from eah_interp.attribution.patching.recording import Recording
from eah_interp.attribution.patching.replay import Patching, Replay, prepare_replay
from eah_interp.attribution.recipients.shapley import Coalition

Player = tuple[int, int]
"""Layer and head of a recipient."""


@dataclass
class BroadcastGame:
    """One item's broadcast, received by any of the heads that it changes.

    Attributes:
        model: The LVLM.
        replay: The patched run.
        players: The heads that the broadcast changes: recipients, but for a donor,
            whose own pattern changes nothing.
        batch_size: Most coalitions in one forward pass.
        progress: Whether to show a bar.
        known: What coalitions are worth, once they were run.
    """

    model: Any
    replay: Replay
    players: list[Player]
    batch_size: int
    progress: bool
    known: dict[Coalition, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        run: Recording,
        recipients: Sequence[Player],
        *,
        batch_size: int,
        progress: bool,
    ) -> "BroadcastGame":
        """Make the game of a recorded broadcast."""
        players = [player for player in recipients if _changes(run, *player)]
        return cls(model, prepare_replay(model, run), players, batch_size, progress)

    @property
    def everyone(self) -> Coalition:
        """All players."""
        return Coalition(range(len(self.players)))

    @torch.no_grad()
    def worth(
        self, coalitions: Sequence[Coalition]
    ) -> Float[Tensor, "coalition target"]:
        """Say what each target is where exactly these players receive."""
        new = [each for each in dict.fromkeys(coalitions) if each not in self.known]
        if new:
            found = in_batches(
                new,
                self._run,
                batch_size=self.batch_size,
                progress=self.progress,
                label="coalitions",
            )
            self.known.update(zip(new, found.cpu(), strict=True))
        return torch.stack([self.known[each] for each in coalitions])

    def _run(self, coalitions: list[Coalition]) -> Tensor:
        recording = self.replay.recording
        masks = {
            layer: torch.zeros(
                len(coalitions),
                self.model.n_heads,
                dtype=torch.bool,
                device=recording.heads[layer].device,
            )
            for layer in recording.patches
        }
        for row, coalition in enumerate(coalitions):
            for player in coalition:
                layer, head = self.players[player]
                masks[layer][row, head] = True
        patching = Patching(recording.eah, recording.patches, masks, recording.prompt)
        start = min(recording.patches)
        return self.replay.run(
            self.model, len(coalitions), start=start, patching=patching
        )


def _changes(run: Recording, layer: int, head: int) -> bool:
    """Say whether a broadcast gives a head another pattern than its own."""
    assert run.eah is not None
    patch = run.patches[layer]
    if not bool(patch.patched[0]):
        return False
    return run.eah.remakes_pattern or int(patch.donors[0]) != head
