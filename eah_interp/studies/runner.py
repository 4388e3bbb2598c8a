"""A study in this process: batch by batch, resumable, stopped politely by Ctrl-C."""

import contextlib
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from eah_interp.errors import SettingsError, show_value
from eah_interp.studies.conditions import Condition
from eah_interp.studies.store import Store
from eah_interp.studies.work import Batch, run_batch, score_batch


@dataclass(frozen=True)
class Shard:
    """A share of a study's batches: the `index`-th of `count`, counted from 1.

    Raises:
        SettingsError: If there is no such share.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            msg = f"shard {self.index}/{self.count}: expected 1/N to N/N"
            raise SettingsError(msg)

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `2/8`.

        Raises:
            SettingsError: If it reads otherwise.

        Example:
            >>> Shard.parse("2/8")
            Shard(index=2, count=8)
        """
        # No more digits: Python refuses to read them.
        given = text if isinstance(text, str) else ""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given)
        if found is None:
            msg = f"expected a shard such as 2/8, got {show_value(text)}"
            raise SettingsError(msg)
        return cls(int(found[1]), int(found[2]))

    def has(self, batch: Batch) -> bool:
        """Whether a batch is of this share."""
        return batch.number % self.count == self.index - 1


def list_work(
    store: Store,
    batches: Sequence[Batch],
    conditions: Sequence[Condition],
    *,
    shard: Shard,
    sinks: bool,
) -> list[tuple[Batch, tuple[Condition, ...], bool]]:
    """List what is not there yet: for each batch its conditions, and its sinks.

    Batches come first, so that a stopped study has every condition of what it has.
    """
    work = []
    for batch in batches:
        if not shard.has(batch):
            continue
        lacking = tuple(c for c in conditions if not store.has(c.name, batch.number))
        score = sinks and not store.has_sinks(batch.number)
        if lacking or score:
            work.append((batch, lacking, score))
    return work


def run_local(
    model: Any,
    store: Store,
    work: Sequence[tuple[Batch, tuple[Condition, ...], bool]],
    *,
    decoding: Mapping[str, Any],
    progress: bool,
    seed: int = 0,
) -> None:
    """Do the work in this process.

    Raises:
        KeyboardInterrupt: After the running batch, if Ctrl-C was pressed.
        SettingsError: If rows cannot be written (a full disk, say).
        UnsupportedError: If the machine fails: memory, a device.
    """
    total = sum(len(b.items) * len(lacking) for b, lacking, _ in work)
    with (
        polite(store.folder) as stop,
        make_bar(total, progress=progress) as bar,
    ):
        for batch, lacking, score in work:
            if score:
                store.write_sinks(batch.number, score_batch(model, batch))
                stop.check()
            for condition in lacking:
                rows = run_batch(model, batch, condition, decoding=decoding, seed=seed)
                store.write(condition.name, batch.number, rows)
                bar.update(len(batch.items))
                stop.check()


def make_bar(total: int, *, progress: bool) -> Any:
    """Make a study's bar, whose durations are those of a clock that never goes back.

    Args:
        total: Items times conditions to do.
        progress: Whether to show it.
    """
    bar: Any = tqdm(total=total, desc="items x conditions", disable=not progress)
    if progress:
        bar._time = time.monotonic
        bar.start_t = bar.last_print_t = bar._time()
    return bar


class Stop:
    """Whether Ctrl-C was pressed."""

    def __init__(self, folder: Path) -> None:
        self.asked = False
        self._folder = folder

    def check(self) -> None:
        """Stop here, between two batches.

        Raises:
            KeyboardInterrupt: If it was pressed.
        """
        if self.asked:
            msg = (
                f"stopped; every finished batch is in {self._folder}. Run the same "
                "study into the same folder to go on"
            )
            raise KeyboardInterrupt(msg)


@contextlib.contextmanager
def polite(folder: Path) -> Iterator[Stop]:
    """Wait for the batch at the first Ctrl-C, and stop at once at the second."""
    stop = Stop(folder)

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.asked:
            signal.default_int_handler(number, None)
        stop.asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: nobody presses Ctrl-C here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
