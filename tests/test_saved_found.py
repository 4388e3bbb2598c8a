"""What finders found, and settings that hold it, load as they were saved.

The files are in `tests/saved/found`; `tests/saved/make_found.py` wrote them once. A
test that fails here is a promise to users that is about to be broken: mend the
package, and leave the files alone.
"""

import json

import pytest

import eah_interp as eah
from eah_interp.results import Result
from eah_interp.studies import Condition
from tests.saved import make_found, plan

EXPECTED = json.loads(make_found.EXPECTED_FILE.read_text())
SAVED = json.loads(make_found.SETTINGS_FILE.read_text())
RESULTS = [name for name in EXPECTED if name != "commit"]


@pytest.mark.parametrize("name", RESULTS)
def test_a_saved_result_holds_what_it_was_made_of(name):
    loaded = Result.load(make_found.HERE / name)
    expected = EXPECTED[name]
    assert type(loaded).__name__ == expected["class"]
    described = plan.describe(loaded)
    for key, digest in expected["attributes"].items():
        assert plan.digest(described[key]) == digest, key
    assert loaded == make_found.make_results()[name]
    assert len(loaded.frame()) > 0


def test_everything_that_is_made_was_saved():
    assert set(RESULTS) == set(make_found.make_results())
    assert list(SAVED) == [one.name for one in make_found.make_conditions()]


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_condition_loads_as_one_made_anew_and_is_written_the_same(name):
    anew = {one.name: one for one in make_found.make_conditions()}[name]
    loaded = Condition.from_dict(SAVED[name])
    assert loaded == anew
    assert json.loads(json.dumps(loaded.to_dict())) == SAVED[name]


def test_settings_in_a_file_find_saved_directions():
    steer = eah.Steer.from_dict({"vectors": str(make_found.HERE / "directions")})
    assert steer.vectors == make_found.make_results()["directions"]
