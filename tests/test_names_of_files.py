"""Names that no file can have are refused by name wherever one is written to."""

from pathlib import Path

import pytest

import eah_interp as eah
from eah_interp.arguments import check_path
from eah_interp.errors import EAHError, SettingsError
from eah_interp.files import make_folder, save_bytes
from eah_interp.viz.widgets import save_page
from tests.made_results import SIZES, directions
from tests.viz.test_widgets import bad_widget

NAMES = ["\ud800", "a\0b", "name\ud800.html", "a" * 5000]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    for given in (name, Path(name), str(tmp_path / name)):
        with pytest.raises(SettingsError, match=r"for a path|as text or pathlib"):
            check_path("path", given, error=SettingsError)
    with pytest.raises(SettingsError, match="cannot write"):
        save_bytes(b"", tmp_path / name)
    with pytest.raises(SettingsError, match="cannot make the folder"):
        make_folder(tmp_path / name)
    with pytest.raises(EAHError, match="path"):
        save_page([bad_widget("ColoredTokens")], str(tmp_path / name))
    with pytest.raises(EAHError, match=r"path|folder"):
        directions(next(iter(SIZES.values()))).save(str(tmp_path / name))
    with pytest.raises(EAHError, match="path"):
        eah.load(name)


def test_bytes_that_are_no_text_stay_a_name(tmp_path):
    path = tmp_path / b"caf\xe9.txt".decode(errors="surrogateescape")
    assert check_path("path", str(path)) == path
    save_bytes(b"1", path)
    assert path.read_bytes() == b"1"
