"""A study on Ray: workers that each hold a model, and a driver that alone writes."""

import contextlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from eah_interp.errors import (
    ExtraMissingError,
    ModelError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.lvlm.weights import check_plain
from eah_interp.studies.conditions import Condition
from eah_interp.studies.manifest import (
    Manifest,
    ModelSource,
    hash_weights,
    list_versions,
)
from eah_interp.studies.runner import Stop, make_bar, polite
from eah_interp.studies.store import Store
from eah_interp.studies.work import Batch, run_batch, score_batch

DEATHS = 3
"""A batch under which so many workers die is given up, and named."""

Job = tuple[Batch, Condition | None]
"""A batch under a condition; None scores its sinks."""


def run_ray(
    model: Any,
    store: Store,
    work: Sequence[tuple[Batch, tuple[Condition, ...], bool]],
    *,
    source: ModelSource | None,
    manifest: Manifest,
    decoding: Mapping[str, Any],
    seed: int,
    address: str | None,
    workers: int | None,
    progress: bool,
) -> None:
    """Do the work on Ray workers; the rows are those of the local engine.

    A worker that dies is replaced, and its batch runs again.

    Args:
        model: The model; sent to the workers where there is no source.
        store: Where rows go; only this process writes.
        work: What is not there yet.
        source: Where workers load the model from.
        manifest: The study's: workers refuse other weights and packages.
        decoding: Arguments of `generate`, by task.
        seed: Of answers that are sampled.
        address: A cluster's; this machine when None.
        workers: How many; one for each GPU, or two without, when None.
        progress: Whether to show a bar.

    Raises:
        KeyboardInterrupt: After the running batches, if Ctrl-C was pressed.
        SettingsError: If rows cannot be written, or there are too few cores.
        UnsupportedError: If one batch kills three workers; it is named.
        ExtraMissingError: If ray is not installed.
    """
    jobs: deque[Job] = deque()
    for batch, lacking, score in work:
        jobs.extend([(batch, None)] if score else [])
        jobs.extend((batch, condition) for condition in lacking)
    if not jobs:
        return
    ray = _import_ray()
    on_gpu = manifest.device == "cuda"
    with _connected(ray, address, workers):
        count = _count_workers(ray, workers, on_gpu=on_gpu)
        remote = ray.remote(Worker).options(num_cpus=1, num_gpus=int(on_gpu))
        shipped = ray.put(source or Shipment.of(model))
        pool = _Pool(ray, remote, (shipped, manifest), (decoding, seed))
        total = sum(len(b.items) for b, condition in jobs if condition is not None)
        with (
            polite(store.folder) as stop,
            make_bar(total, progress=progress) as bar,
        ):
            pool.start(min(count, len(jobs)))
            for (batch, condition), rows in pool.run(jobs, stop):
                if condition is None:
                    store.write_sinks(batch.number, rows)
                else:
                    store.write(condition.name, batch.number, rows)
                    bar.update(len(batch.items))
            stop.check()


@dataclass
class _Pool:
    """Workers, each with one job at a time."""

    ray: Any
    remote: Any
    made_of: tuple[Any, ...]
    settings: tuple[Any, ...]
    idle: list[Any] = field(default_factory=list)
    deaths: Counter[tuple[int, str]] = field(default_factory=Counter)

    def start(self, count: int) -> None:
        """Start workers and wait until each has its model."""
        self.idle = [self.remote.remote(*self.made_of) for _ in range(count)]
        for worker in self.idle:
            self._fetch(worker.is_ready.remote())

    def run(self, jobs: deque[Job], stop: Stop) -> Iterator[tuple[Job, Any]]:
        """Yield every job with its rows as they come, until asked to stop."""
        running: dict[Any, tuple[Any, Job]] = {}
        while jobs or running:
            while jobs and self.idle and not stop.asked:
                worker, job = self.idle.pop(), jobs.popleft()
                running[worker.run.remote(*job, *self.settings)] = (worker, job)
            if not running:
                return
            # Not for ever, so that Ctrl-C is seen.
            done, _ = self.ray.wait(list(running), timeout=1.0)
            for ref in done:
                worker, job = running.pop(ref)
                try:
                    rows = self._fetch(ref)
                except self.ray.exceptions.RayActorError as error:
                    self._count_death(job, error)
                    jobs.appendleft(job)
                    worker = self.remote.remote(*self.made_of)
                else:
                    yield job, rows
                self.idle.append(worker)

    def _fetch(self, ref: Any) -> Any:
        """Fetch a result; what was raised over there is raised here as it was."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def _count_death(self, job: Job, error: Exception) -> None:
        batch, condition = job
        name = "the scoring of its sinks" if condition is None else condition.name
        self.deaths[(batch.number, name)] += 1
        if self.deaths[(batch.number, name)] < DEATHS:
            return
        reason = " ".join(str(error).split())[:300]
        msg = (
            f"batch {batch.number} ({batch.items[0].id} to {batch.items[-1].id}) under "
            f"{name} killed {DEATHS} workers: {reason}; give them more memory, or use "
            "a smaller batch_size (in a new folder)"
        )
        raise UnsupportedError(msg) from error


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        # A study's numbers leave the machine in no way, and Ray would report its use.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = max(workers or 2, os.cpu_count() or 1)
        options |= {"num_cpus": cores, "include_dashboard": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"cannot connect to Ray at {address or 'this machine'}: {reason}"
        raise SettingsError(msg) from error
    try:
        yield
    finally:
        ray.shutdown()


def _count_workers(ray: Any, wanted: int | None, *, on_gpu: bool) -> int:
    there = ray.cluster_resources()
    most = int(there.get("GPU" if on_gpu else "CPU", 0))
    count = wanted or (most if on_gpu else min(2, most))
    if not 1 <= count <= most:
        kind = "GPUs" if on_gpu else "cores"
        msg = f"expected 1 to {most} workers, one for each of Ray's {kind}, got {count}"
        raise SettingsError(msg)
    return count


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own deprecations
            import ray
            import ray.exceptions
    except ImportError as error:
        msg = "engine='ray' needs Ray: pip install 'eah-interp[ray]'"
        raise ExtraMissingError(msg) from error
    return ray


# ---- A worker: a process of its own that holds a model, and how the model gets there.


@dataclass(frozen=True)
class Shipment:
    """A model as it can be sent: how to build it, and its weights as safetensors.

    Attributes:
        kind: Its class in transformers.
        config: Its configuration.
        generation: Its defaults of `generate`.
        weights: Parameters and buffers.
        processor: Its processor.
        device: Type of the device it runs on.
        image_token_id: The image token's id.
    """

    kind: type
    config: Any
    generation: Any
    weights: bytes
    processor: Any
    device: str
    image_token_id: int | None

    @classmethod
    def of(cls, model: Any) -> "Shipment":
        """Pack an LVLM that is in memory.

        Raises:
            UnsupportedError: If its weights are quantised, hold an adapter, or are
                kept off the device.
        """
        from safetensors.torch import save

        module = model._module
        check_plain(module, for_what="shipping a model in memory to Ray's workers")
        state = {
            # A clone: safetensors refuses weights that are tied to each other.
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in module.state_dict().items()
        }
        return cls(
            kind=type(module),
            config=module.config,
            generation=module.generation_config,
            weights=save(state),
            processor=model.processor,
            device=torch.device(model.device).type,
            image_token_id=getattr(module.config, "image_token_id", None),
        )

    def load(self) -> Any:
        """Build the LVLM again."""
        from safetensors.torch import load

        from eah_interp.lvlm import wrap

        state = load(self.weights)
        attention = self.config.get_text_config()._attn_implementation
        module = self.kind._from_config(  # type: ignore[attr-defined]
            self.config, attn_implementation=attention
        )
        module.load_state_dict(state, assign=True)
        module.tie_weights()
        module.generation_config = self.generation
        module = module.eval().to(self.device)
        # Not verified again: the weights' hash is compared with the study's.
        token = self.image_token_id
        return wrap(module, self.processor, verify=False, image_token_id=token)


class Worker:
    """A model, and what is asked of it.

    Attributes:
        model: The model.

    Raises:
        ModelError: If its weights or packages are not the study's.
    """

    def __init__(self, source: ModelSource | Shipment, manifest: Manifest) -> None:
        found = list_versions()
        if found != dict(manifest.versions):
            msg = (
                f"a worker has other packages: expected {dict(manifest.versions)}, got "
                f"{found}; install the same versions everywhere"
            )
            raise ModelError(msg)
        self.model = source.load()
        weights = hash_weights(self.model._module)
        if weights != manifest.weights:
            msg = (
                f"a worker loaded other weights: expected {manifest.weights[:12]}, got "
                f"{weights[:12]}; give the study no source, so that they are sent"
            )
            raise ModelError(msg)

    def is_ready(self) -> bool:
        """Whether the model is loaded; it is once this is answered."""
        return True

    def run(
        self,
        batch: Batch,
        condition: Condition | None,
        decoding: Mapping[str, Any],
        seed: int,
    ) -> pd.DataFrame:
        """Run a batch under a condition, or score its sinks if there is none."""
        if condition is None:
            return score_batch(self.model, batch)
        return run_batch(self.model, batch, condition, decoding=decoding, seed=seed)
