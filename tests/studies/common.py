"""What the tests of studies share: a small study, and models that fail on purpose."""

import pandas as pd

import eah_interp as eah
from eah_interp.studies import Condition, ModelSource, Study, StudyRun, toy_items
from eah_interp.studies.conditions import BASELINE

SHORT = {"yes_no": {"max_new_tokens": 2}, "caption": {"max_new_tokens": 4}}


def toy_study(model, n_scenes=3, *, conditions=None, items=None, **options):
    """Return a study of few short answers."""
    items = toy_items(n_scenes, samplings=("random",)) if items is None else items
    pair = (BASELINE, Condition("EAH", eah.EAH(layers=(2,))))
    options = {"decoding": SHORT, "batch_size": 2, **options}
    return Study(
        model,
        items,
        pair if conditions is None else conditions,
        source=ModelSource("toy"),
        **options,
    )


def content(folder):
    """Return every row that a reader gets, byte for byte comparable."""
    run = StudyRun.load(folder)
    assert run.is_complete
    frame = run.frame()
    assert not frame.duplicated(["item", "condition"]).any()
    return frame


def assert_same(one, other):
    pd.testing.assert_frame_equal(content(one), content(other))
