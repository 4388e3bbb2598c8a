"""Claims about running: whatever stops a study, going on ends with the same rows."""

import errno
import functools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.studies import Item, StudyRun, caption_items, toy_items, work
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.runner import Shard
from tests.studies.common import assert_same, content, toy_study


def in_a_child(action):
    """Run an action in a forked process, which has the model already."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def wait_for(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(study, folder, **options):
    return study.run(folder, progress=False, **options)


def parts(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.parquet"))


def kill_at_random(toy, reference, folders, *, kills, seed):
    """Kill runs at random moments until there were enough; check what they end in."""
    draw = random.Random(seed)
    started = time.monotonic()
    study = toy_study(toy)
    run(study, next(folders))
    whole = time.monotonic() - started
    folder, done = next(folders), 0
    while done < kills:
        child = in_a_child(functools.partial(run, study, folder))
        time.sleep(draw.uniform(0, 0.6) * whole)
        os.kill(child, signal.SIGKILL)
        code = wait_for(child)
        done += code == -signal.SIGKILL
        if code == 0:
            assert_same(folder, reference)
            folder = next(folders)
    run(study, folder)
    assert_same(folder, reference)


@pytest.fixture
def folders(tmp_path):
    return (tmp_path / str(number) for number in range(1000))


def test_killed_at_three_random_moments_a_study_ends_with_the_same_rows(
    toy, undisturbed, folders
):
    kill_at_random(toy, undisturbed, folders, kills=3, seed=0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_study_ends_with_the_same_rows(
    toy, undisturbed, folders
):
    kill_at_random(toy, undisturbed, folders, kills=20, seed=1)


@pytest.mark.parametrize("write", [1, 2, 3, 5])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_inside_a_write_a_study_loses_and_doubles_nothing(
    toy, undisturbed, tmp_path, call, write
):
    """The worst moments: a part is half written, or whole and not yet named."""
    study = toy_study(toy)
    owner = os if call == "fsync" else Path
    real, calls = getattr(owner, call), []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    def action():
        setattr(owner, call, die)
        run(study, tmp_path)

    assert wait_for(in_a_child(action)) == -signal.SIGKILL
    assert list(tmp_path.rglob(".*.part"))
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)
    assert not list((tmp_path / "rows").rglob(".*.part"))


def test_two_processes_in_one_folder_end_with_the_same_rows(toy, undisturbed, tmp_path):
    study = toy_study(toy)
    children = [in_a_child(lambda: run(study, tmp_path)) for _ in range(2)]
    assert [wait_for(child) for child in children] == [0, 0]
    assert_same(tmp_path, undisturbed)


def test_three_shards_are_one_run(toy, undisturbed, tmp_path):
    study = toy_study(toy)
    found = []
    for shard in ("3/3", "1/3", "2/3"):
        assert not found or not StudyRun.load(tmp_path).is_complete
        run(study, tmp_path, shard=shard)
        found.append(len(parts(tmp_path)))
    assert found[0] < found[1] < found[2]
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_a_share_that_does_not_exist_is_refused(text):
    with pytest.raises(SettingsError, match="shard"):
        Shard.parse(text)


@pytest.mark.parametrize("seed", range(3))
def test_a_full_disk_is_named_and_what_was_written_stays(
    toy, undisturbed, tmp_path, monkeypatch, seed
):
    study = toy_study(toy)
    last = 2 * (2 + len(parts(undisturbed)))  # a file's, and its folder's
    full = random.Random(seed).randrange(2, last)
    real, calls = os.fsync, []

    def sync(number):
        calls.append(number)
        if len(calls) >= full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(SettingsError, match="No space left on device"):
            run(study, tmp_path)
    kept = {part: (tmp_path / part).read_bytes() for part in parts(tmp_path)}
    assert not list(tmp_path.rglob(".*.part"))
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)
    assert all((tmp_path / part).read_bytes() == kept[part] for part in kept)


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(
    toy, undisturbed, tmp_path, monkeypatch
):
    study, real = toy_study(toy), work.run_batch
    asked = []

    def pressed(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("eah_interp.studies.runner.run_batch", pressed)
        with pytest.raises(KeyboardInterrupt, match="into the same folder to go on"):
            run(study, tmp_path)
    assert len(parts(tmp_path)) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)


def test_an_unreadable_image_is_recorded_and_changes_no_other_answer(toy, tmp_path):
    """Answers are compared, as words: a batch without the image is a smaller one."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        scene = eah.toy.draw_scene(number, split="test")
        scene.pil().save(images / f"{number}.png")
    fine = caption_items(images)
    (images / "1b.png").write_bytes((images / "1.png").read_bytes()[:60])
    (images / "1c.png").write_bytes(b"")
    everything = (
        *caption_items(images),
        Item("gone", "caption", str(images / "gone.png"), "What?"),
    )
    with_bad, without = (
        run(toy_study(toy, items=items, batch_size=4), tmp_path / name).frame()
        for name, items in (("with", everything), ("without", fine))
    )
    failed = with_bad[with_bad.error.notna()]
    assert set(failed.item) == {"1b/caption", "1c/caption", "gone"}
    assert failed.answer.isna().all()
    assert failed.error.str.contains("InputError").all()
    answered = with_bad[with_bad.error.isna()].set_index(["condition", "item"])
    expected = without.set_index(["condition", "item"])
    assert answered.answer.equals(expected.answer)
    assert answered.n_tokens.equals(expected.n_tokens)


def test_a_model_that_returns_nan_is_recorded(tmp_path):
    broken = eah.load()
    with torch.no_grad():
        broken._module.lm_head.weight[5] = torch.nan
    rows = run(toy_study(broken, 1, sinks=True), tmp_path).frame()
    assert rows.error.str.startswith("NumericalError: the model's logits are NaN").all()
    assert rows.answer.isna().all()


def failing(monkeypatch, error, *, item):
    """Make every forward pass fail that has an item."""
    real = work._ask

    def ask(twin, batch, places, **given):
        if item in [batch.items[place].id for place in places]:
            raise error
        return real(twin, batch, places, **given)

    monkeypatch.setattr(work, "_ask", ask)


def test_a_failing_item_is_recorded_alone_and_can_be_run_again(
    toy, undisturbed, tmp_path, monkeypatch
):
    study = toy_study(toy)
    with monkeypatch.context() as patch:
        failing(patch, ValueError("a word too long"), item="1/random/yes")
        rows = run(study, tmp_path).frame()
    assert rows[rows.error.notna()].item.tolist() == ["1/random/yes"] * 2
    assert set(rows.error.dropna()) == {"ValueError: a word too long"}
    healthy = content(undisturbed)
    fine = rows.error.isna()
    assert rows[fine].answer.equals(healthy[fine].answer)
    assert run(study, tmp_path).frame().equals(rows)  # a failed row is a row
    run(study, tmp_path, retry_failed=True)
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough"),
        RuntimeError("Can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "other", "python"],
)
def test_too_little_memory_is_no_item_s_fault(
    toy, undisturbed, tmp_path, monkeypatch, error
):
    study = toy_study(toy)
    with monkeypatch.context() as patch:
        failing(patch, error, item="1/random/yes")
        with pytest.raises(
            UnsupportedError, match=r"batch 1 under 'baseline'.*smaller"
        ):
            run(study, tmp_path)
    assert len(parts(tmp_path)) == 2
    run(study, tmp_path)
    assert_same(tmp_path, undisturbed)


def test_sampled_answers_are_the_same_after_going_on(toy, tmp_path):
    sampled = {"yes_no": {"do_sample": True, "temperature": 9.0, "max_new_tokens": 3}}
    items = toy_items(3, samplings=("random",), captions=False)
    options = {"items": items, "conditions": (BASELINE,), "decoding": sampled}
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    one = run(toy_study(toy, **options), tmp_path / "one").frame()
    assert torch.equal(torch.rand(1), before)  # the caller's random numbers stay
    run(toy_study(toy, **options), tmp_path / "two", shard="2/2")
    two = run(toy_study(toy, **options), tmp_path / "two").frame()
    other = run(toy_study(toy, seed=1, **options), tmp_path / "three").frame()
    assert one.answer.tolist() == two.answer.tolist()
    assert one.answer.tolist() != other.answer.tolist()


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"captions": {}}, "expected yes_no, caption, got captions"),
        ({"caption": {"max_tokens": 3}}, "got max_tokens"),
        ({"caption": {"num_return_sequences": 3}}, "got num_return_sequences"),
        ({"caption": {"max_new_tokens": -1}}, "decoding of caption is impossible"),
        ({"caption": {"top_p": float("nan")}}, "caption: top_p must be finite"),
        ({"caption": {"top_p": object()}}, "top_p must be a number, a text or a list"),
        ({"caption": {"top_k": torch.eye(2).to_sparse()}}, "top_k must be a number"),
        ({"caption": {"top_k": 10**5000}}, "top_k must be a number"),
    ],
    ids=lambda one: str(one)[:40] if isinstance(one, str) else "",
)
def test_decoding_that_would_fail_every_item_is_refused(toy, decoding, message):
    with pytest.raises(SettingsError, match=message):
        toy_study(toy, 1, decoding=decoding)


def test_decoding_holds_plain_numbers_whatever_was_given(toy):
    given = {"max_new_tokens": np.int64(3), "eos_token_id": torch.tensor([5, 6])}
    made = toy_study(toy, 1, decoding={"caption": given}).settings["caption"]
    assert (made["max_new_tokens"], made["eos_token_id"]) == (3, [5, 6])
    assert json.loads(json.dumps(made)) == made


def test_an_engine_that_does_not_exist_is_refused(toy, tmp_path, as_users_run_it):
    with pytest.raises(SettingsError, match="local, ray, got 'dask'"):
        run(toy_study(toy, 1), tmp_path, engine="dask")
