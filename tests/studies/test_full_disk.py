"""A disk that is really full stops a study, and loses nothing."""

import os
import subprocess

import pytest

from eah_interp.errors import SettingsError
from eah_interp.studies import StudyRun
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
