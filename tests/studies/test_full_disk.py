"""A full disk loses nothing; a clock that goes back changes nothing."""

import errno
import math
import os
import re
import stat
import subprocess

import pytest

from eah_interp.errors import SettingsError
from eah_interp.studies import StudyRun, report
from tests.studies.common import assert_same, toy_study

PAGE = os.sysconf("SC_PAGE_SIZE")


def mount(*arguments):
    command = ["mount", "-t", "tmpfs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def small_disk(tmp_path, undisturbed):
    """Return a folder on a disk two pages too small, and a way to make it larger."""
    sizes = [path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()]
    pages = sum(-(-size // PAGE) for size in sizes)
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-o", f"size={(pages - 2) * PAGE}", "none", folder).returncode:
        pytest.skip("mounting a tmpfs needs root: a full disk is simulated only")
    yield folder, lambda: mount("-o", "remount,size=32m", "none", folder)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_on_a_full_disk_stops_and_goes_on_when_there_is_room(
    toy, undisturbed, small_disk
):
    folder, enlarge = small_disk
    study = toy_study(toy)
    with pytest.raises(SettingsError, match=r"cannot write .*No space left on device"):
        study.run(folder, progress=False)
    kept = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    assert kept
    assert not StudyRun.load(folder).is_complete
    assert not list(folder.rglob(".*.part"))
    assert enlarge().returncode == 0
    study.run(folder, progress=False)
    assert_same(folder, undisturbed)
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.slow
def test_a_disk_that_fills_at_any_file_loses_nothing(toy, tmp_path, monkeypatch):
    """Fill the disk at the first file, the second, ...: each writer of a study."""
    real, room = os.fsync, [math.inf]

    def sync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            return real(number)
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number)

    def study():
        return toy_study(toy, 1, batch_size=8, sinks=True)

    study().run(tmp_path / "whole", progress=False)
    monkeypatch.setattr(os, "fsync", sync)
    names = set()
    for n_files in range(20):
        folder = tmp_path / str(n_files)
        room[0] = n_files
        try:
            study().run(folder, progress=False)
        except SettingsError as error:
            said = str(error)
            names.add(re.search(r"cannot write (.*?): No space", said)[1])
        else:
            break
        assert not list(folder.rglob(".*.part"))
        room[0] = math.inf
        study().run(folder, progress=False)
        assert_same(folder, tmp_path / "whole")
        sinks = StudyRun.load(folder).sinks()
        assert sinks.equals(StudyRun.load(tmp_path / "whole").sinks())
    written = {path.rsplit("/", 1)[1] for path in names}
    assert {"manifest.json", "items.json", "000000.parquet"} <= written
    assert any("/sinks/" in path for path in names)
    room[0] = 0
    run = StudyRun.load(tmp_path / "whole")
    with pytest.raises(SettingsError, match=r"page\.html: No space left"):
        report(run, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_clock_that_goes_back_changes_no_row(
    toy, undisturbed, tmp_path, monkeypatch, capsys
):
    hours = iter(range(10**9, 0, -1))
    monkeypatch.setattr("time.time", lambda: 3600.0 * next(hours))
    study = toy_study(toy)
    study.run(tmp_path, shard="2/2", progress=True)
    for path in tmp_path.rglob("*.parquet"):  # written in a future that is gone
        os.utime(path, (4e9, 4e9))
    study.run(tmp_path, progress=True)
    assert_same(tmp_path, undisturbed)
    shown = capsys.readouterr().err
    assert "100%" in shown
    # Durations are those of a clock that cannot go back: seconds, never a minus.
    assert "[-" not in shown
    assert re.search(r"\[00:\d\d<", shown)
