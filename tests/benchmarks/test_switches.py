"""Switches of readers and comparisons are True or False, and nothing like them."""

import numpy as np
import pytest

from eah_interp.benchmarks import (
    compare_outputs,
    read_hallusionbench,
    read_mme,
    read_pope_questions,
)
from eah_interp.benchmarks.outputs import read_answer_outputs, read_caption_outputs
from eah_interp.errors import SettingsError

CALLS = {
    "compare_outputs": lambda flag: compare_outputs(
        "base.jsonl", "patched.jsonl", questions="questions.jsonl", common=flag
    ),
    "read_answer_outputs": lambda flag: read_answer_outputs(
        ["base.jsonl"], questions="questions.jsonl", common=flag
    ),
    "read_caption_outputs": lambda flag: read_caption_outputs(
        ["base.jsonl"], annotations="there", synonyms=None, common=flag
    ),
    "read_hallusionbench": lambda flag: read_hallusionbench("there", answers=flag),
    "read_mme": lambda flag: read_mme("there", with_answers=flag),
    "read_pope_questions": lambda flag: read_pope_questions("there", with_images=flag),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("odd", ["no", 1, None, np.array([])], ids=repr)
def test_what_is_no_switch_is_refused_before_a_file_is_read(call, odd):
    with pytest.raises(SettingsError, match=r"must be True or False"):
        call(odd)
