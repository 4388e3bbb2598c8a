"""Claims about engines: the same rows, whoever computes them and whatever dies."""

import dataclasses
import os
import signal
import sys

import pytest

import eah_interp as eah
from eah_interp.errors import (
    ExtraMissingError,
    ModelError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.studies import StudyRun, work
from eah_interp.studies.engine_ray import Shipment, Worker
from eah_interp.studies.manifest import Manifest, hash_weights
from tests.studies.common import assert_same, content, toy_study
from tests.studies.fake_ray import make_ray


@pytest.fixture
def ray(monkeypatch):
    """Put a stand-in in Ray's place; workers share the model, to load it once."""
    fake = make_ray()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    return fake


@pytest.fixture
def study(toy, monkeypatch):
    """Return the study whose source gives the model that is there already."""
    monkeypatch.setattr("eah_interp.studies.manifest.ModelSource.load", lambda _: toy)
    return toy_study(toy)


def run(study, folder, **options):
    return study.run(folder, engine="ray", progress=False, **options)


def test_rows_that_come_out_of_order_are_those_of_one_process(
    ray, study, undisturbed, tmp_path
):
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)
    assert ray.started == 2
    assert ray.asked == {"num_cpus": 1, "num_gpus": 0}
    assert ray.inits[0]["address"] == "local"
    assert ray.inits[-1] == "shutdown"
    run(study, tmp_path)
    assert ray.started == 2  # nothing was left to do


def test_a_worker_that_dies_is_replaced_and_its_batch_runs_again(
    ray, study, undisturbed, tmp_path
):
    died = []

    def dies(batch, condition, *settings):
        if condition is not None and (batch.number, condition.name) not in died:
            died.append((batch.number, condition.name))
            return len(died) <= 3
        return False

    ray.dies = dies
    run(study, tmp_path, workers=3)
    assert_same(tmp_path, undisturbed)
    assert ray.started == 3 + 3


def test_a_batch_that_kills_three_workers_is_named(ray, study, undisturbed, tmp_path):
    ray.dies = lambda batch, *_: batch.number == 1
    message = r"batch 1 \(1/random/yes to 1/random/no\) under baseline killed 3 workers"
    with pytest.raises(UnsupportedError, match=message):
        run(study, tmp_path, workers=1)
    assert 0 < len(list(tmp_path.rglob("*.parquet"))) < 10
    ray.dies = lambda *_: False
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)


def test_what_a_worker_raises_is_raised_here(ray, study, tmp_path, monkeypatch):
    def fail(*arguments, **given):
        raise MemoryError

    monkeypatch.setattr(work, "_ask", fail)
    with pytest.raises(UnsupportedError, match="smaller batch_size"):
        run(study, tmp_path)


def test_ctrl_c_finishes_the_running_batches(
    ray, study, undisturbed, tmp_path, monkeypatch
):
    real, asked = Worker.run, []

    def pressed(self, *task):
        asked.append(task)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *task)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", pressed)
        with pytest.raises(KeyboardInterrupt, match="into the same folder to go on"):
            run(study, tmp_path)
    assert len(list(tmp_path.rglob("*.parquet"))) == len(asked) < 10
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)


def test_sinks_are_scored_by_workers_too(ray, toy, study, tmp_path):
    scored = dataclasses.replace(study, sinks=True)
    one = run(scored, tmp_path / "ray").sinks()
    other = scored.run(tmp_path / "local", progress=False).sinks()
    assert len(one) > 0
    assert one.equals(other)


@pytest.mark.parametrize("workers", [5, 100])
def test_more_workers_than_cores_are_refused(ray, study, tmp_path, workers):
    with pytest.raises(
        SettingsError, match="1 to 4 workers, one for each of Ray's cor"
    ):
        run(study, tmp_path, workers=workers)


def test_a_cluster_that_is_not_there_is_named(ray, study, tmp_path):
    def init(**given):
        msg = "no GCS"
        raise ConnectionError(msg)

    ray.init = init
    with pytest.raises(SettingsError, match=r"cannot connect to Ray at node:6379: no"):
        run(study, tmp_path, address="node:6379")


def test_without_ray_its_extra_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtraMissingError, match=r"eah-interp\[ray\]"):
        run(study, tmp_path)


def test_a_model_in_memory_is_sent_whole(toy):
    sent = Shipment.of(toy).load()
    assert hash_weights(sent._module) == hash_weights(toy._module)
    assert sent._module.config._attn_implementation == (
        toy._module.config._attn_implementation
    )


def test_a_worker_with_other_weights_or_packages_is_refused(toy, undisturbed):
    manifest = StudyRun.load(undisturbed).manifest
    other = dataclasses.replace(manifest, weights="0" * 64)
    sent = Shipment.of(toy)
    with pytest.raises(ModelError, match="loaded other weights: expected 000000"):
        Worker(sent, other)
    older = dataclasses.replace(manifest, versions={"torch": "1.0"})
    with pytest.raises(ModelError, match="other packages"):
        Worker(sent, older)
    assert isinstance(manifest, Manifest)
    assert Worker(sent, manifest).is_ready()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_itself_gives_the_same_rows_though_a_worker_is_killed(
    undisturbed, tmp_path, monkeypatch
):
    """The model is sent, not loaded: its source is taken away."""
    ray = pytest.importorskip("ray")
    study = dataclasses.replace(toy_study(eah.load()), source=None)
    from eah_interp.studies import engine_ray

    real, killed = ray.wait, []

    def wait(refs, timeout):
        if len(killed) < 1:
            for worker in workers_of(os.getpid()):
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)
        return real(refs, timeout=timeout)

    monkeypatch.setattr(ray, "wait", wait)
    assert engine_ray.DEATHS == 3
    run(study, tmp_path, workers=2)
    assert killed
    assert_same(tmp_path, undisturbed)
    assert len(content(tmp_path)) == 18


def workers_of(parent):
    """Find one of the workers that this process's Ray started."""
    from pathlib import Path

    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def descends(process):
        while process in parents:
            if process == parent:
                return True
            process = parents[process]
        return False

    found = [p for p, name in names.items() if "ray::Worker" in name and descends(p)]
    return found[:1]
