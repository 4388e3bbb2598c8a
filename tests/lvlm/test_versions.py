"""Claims about untested libraries: an error at load names what was tested."""

import pytest

import eah_interp as eah
from eah_interp.errors import InputError, ModelError
from eah_interp.lvlm import loading as versions
from eah_interp.testing import tiny_lvlm, tiny_processor


@pytest.fixture
def untested(monkeypatch):
    monkeypatch.setitem(versions.TESTED, "nnsight", ("0.7.0", "0.7.2"))


def test_a_refusal_names_the_tested_versions_where_they_are_others(untested):
    with pytest.raises(ModelError, match=r"nnsight .* \(tested: 0.7.0 to 0.7.2\)"):
        eah.wrap(tiny_lvlm("llama"))


def test_any_failure_inside_becomes_a_named_one(untested):
    refused = pytest.raises(ModelError, match="no such thing; this may be for")
    with refused as caught, versions.naming_versions():
        raise AttributeError("no such thing")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_what_the_caller_did_wrong_is_not_blamed_on_versions(untested):
    with pytest.raises(InputError, match=r"^bad$"), versions.naming_versions():
        raise InputError("bad")


def test_with_tested_versions_errors_stay_as_they_are(monkeypatch):
    for name in versions.TESTED:  # `make newest` has others
        monkeypatch.setitem(versions.TESTED, name, ("0", "1000"))
    with pytest.raises(ModelError) as caught:
        eah.wrap(tiny_lvlm("llama"))
    assert "tested" not in str(caught.value)
    with pytest.raises(AttributeError), versions.naming_versions():
        raise AttributeError("as it was")


def test_an_untested_version_that_works_is_no_error(untested):
    assert eah.wrap(tiny_lvlm("llava"), tiny_processor("llava")).verified


@pytest.mark.parametrize(
    ("installed", "named"),
    [("0.8.1", False), ("0.8.1.post1", False), ("0.8.2", True), ("0.7.9", True)],
)
def test_the_range_is_of_release_numbers(installed, named, monkeypatch):
    monkeypatch.setattr(
        versions, "version", {"nnsight": installed, "transformers": "5.23.0"}.get
    )
    assert bool(versions.list_untested()) == named
