"""One model in several threads: one run at a time, and each knows its own."""

import threading
from typing import Any

import torch
from nnsight.intervention.interleaver import Interleaver
from nnsight.modeling.tp import TPFragments
from nnsight.tracing.backend import Backend


def _own(name: str) -> Any:
    """Make an attribute of which every thread has its own."""

    def read(self: Any) -> Any:
        try:
            return getattr(self.local, name)
        except AttributeError:
            raise AttributeError(name) from None

    def write(self: Any, value: Any) -> None:
        setattr(self.local, name, value)

    return property(read, write)


class OneRunAtATime(Interleaver):
    """nnsight's interleaver, shared by a model's threads and its patched twins.

    Workers, batches and counts of a run are kept on it, so two runs at once would take
    each other's; whoever runs holds `lock`. A module that another thread calls
    meanwhile, outside nnsight, belongs to no run.

    Attributes:
        lock: Held for a whole run; again by the thread that holds it, as where a trace
            opens a second one.
        local: What a thread knows of its latest run.
    """

    lock: Any
    local: Any

    def __init__(self) -> None:
        """Make it as nnsight does, for models split across devices too."""
        self._make_locks()
        super().__init__(fragments=TPFragments())

    def _make_locks(self) -> None:
        self.lock, self.local = threading.RLock(), threading.local()

    eah_inputs = _own("inputs")
    eah_promises = _own("promises")
    eah_passes = _own("passes")

    # Whether some thread runs, and which: no other is interleaving.
    _running = False
    _runner = 0

    @property
    def interleaving(self) -> bool:
        """Whether this thread is inside a run."""
        if not self._running:
            return False
        if torch.compiler.is_compiling():  # which cannot ask for the thread
            return True
        return self._runner == threading.get_ident()

    @interleaving.setter
    def interleaving(self, value: bool) -> None:
        self._running, self._runner = value, threading.get_ident()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the locks here: a copy has its own."""
        return {k: v for k, v in vars(self).items() if k not in ("lock", "local")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy's state, with locks of its own."""
        self.__dict__.update(state)
        self._make_locks()


class LockedBackend(Backend):
    """Runs a captured block here, when no other thread runs the model."""

    def __init__(self, lock: Any) -> None:
        """Take the lock of the model's interleaver."""
        self._lock = lock

    def __call__(self, tracer: Any) -> None:
        """Run the block, alone with the model."""
        with self._lock:
            super().__call__(tracer)
