"""No odd input ends otherwise than in a result or in a named error.

A slice of every target here; ten thousand inputs with `make fuzz`.
"""

import time

import pytest

from tests.fuzz import harness
from tests.fuzz.__main__ import list_targets, run_all
from tests.fuzz.harness import NOT_FINITE, RAISED, RIGHT, Input, Target, run_input

pytestmark = pytest.mark.usefixtures("as_users_run_it")

SLOW = ("report", "studies.folders", "studies.summaries", "cli.images")


def list_wrong(ends):
    return [
        f"--only {end.target} --index {end.index}: {end.outcome}: {end.said}"
        for end in ends
        if end.outcome not in RIGHT
    ]


def test_a_slice_of_every_quick_target_ends_in_results_and_named_errors():
    quick = [name for name in list_targets() if name not in SLOW]
    assert not list_wrong(run_all(250, seed=1, only=quick))


def test_the_fuzz_tells_wrong_ends_from_right_ones(tmp_path):
    """What it is for: a fault of each kind is found, whatever raises it."""

    def end_of(call, **options):
        target = Target(lambda *_: Input(call, "", **options), 1)
        return run_input("made", target, 0, seed=0, folder=tmp_path).outcome

    assert end_of(lambda: {}["gone"]) == RAISED
    assert end_of(lambda: int("x")) == RAISED
    assert end_of(lambda: {"a": [1.0, float("nan")]}) == NOT_FINITE
    assert end_of(lambda: {"a": float("nan")}, may_be_nan=frozenset({"a"})) in RIGHT
    assert end_of(lambda: 1.0) in RIGHT


def test_what_computes_or_waits_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.1)

    def compute():
        while True:
            pass

    for call, outcome in (
        (compute, harness.SLOW),
        (lambda: time.sleep(30), harness.SLOW),
        (lambda: time.sleep(0.15), harness.RESULT),  # as on a busy machine
    ):
        target = Target(lambda *_, call=call: Input(call, ""), 1)
        end = run_input("made", target, 0, seed=0, folder=tmp_path)
        assert end.outcome == outcome


def test_an_input_is_made_again_from_its_seed_and_number(tmp_path):
    targets = list_targets()
    for name in ("settings", "kernels", "keywords"):
        one, again = (
            run_input(name, targets[name], 5, seed=2, folder=tmp_path / part)
            for part in ("a", "b")
        )
        assert one == again
