"""Claims about files that are written whole or not at all."""

import os
import platform
import time

import pytest

from eah_interp import files
from eah_interp.errors import SettingsError
from eah_interp.files import clear_parts, save_bytes


def test_a_file_that_must_not_be_replaced_stays(tmp_path):
    path = tmp_path / "a"
    assert save_bytes(b"one", path, replace=False)
    assert not save_bytes(b"two", path, replace=False)
    assert path.read_bytes() == b"one"
    assert save_bytes(b"three", path)
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.fsync
    named = []

    def sync(number):
        named.append(path.exists())
        return real(number)

    monkeypatch.setattr(os, "fsync", sync)
    save_bytes(b"one", path)
    assert named == [False, True]  # the content; then the folder that names it


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match="nowhere/a: No such file"):
        save_bytes(b"one", tmp_path / "nowhere" / "a")


def test_parts_of_live_processes_stay_and_those_of_dead_ones_go(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    mine, dead, elsewhere, old = (
        tmp_path / f".{name}.parquet.{host}.{process}.ab.part"
        for name, host, process in [
            ("mine", files._SELF, os.getpid()),
            ("dead", files._SELF, child),
            ("elsewhere", "other-node", child),
            ("old", "other-node", 1),
        ]
    )
    for path in (mine, dead, elsewhere, old):
        path.write_bytes(b"")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    clear_parts(tmp_path)
    assert mine.exists()
    assert elsewhere.exists()
    assert not dead.exists()
    assert not old.exists()
    assert "." not in files._SELF
    assert platform.node()


def test_a_clock_that_went_back_clears_no_part_of_a_live_process(tmp_path, monkeypatch):
    part = tmp_path / ".a.parquet.other-node.1.ab.part"
    part.write_bytes(b"")
    later = part.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: later - 10**6)
    clear_parts(tmp_path)
    assert part.exists()
