"""What a checker knows of calls whose result depends on what they are given."""

from pathlib import Path

from mypy import api

CACHE = Path(__file__).parents[1] / ".mypy_cache"

SOURCE = """
from pathlib import Path
from typing import Any, assert_type

from PIL import Image
from torch import Tensor

import eah_interp as eah
from eah_interp.interventions import Patch
from eah_interp.lvlm import LVLM


class Mine(LVLM):
    pass


def check(model: LVLM, mine: Mine, image: Image.Image, tensor: Tensor) -> None:
    assert_type(model.describe(image), str)
    assert_type(model.describe("a.png", "What?"), str)
    assert_type(model.describe(Path("a.png"), max_new_tokens=3), str)
    assert_type(model.describe(tensor), str)
    assert_type(model.describe([image]), list[str])
    assert_type(model.describe([image, image], "What?"), list[str])
    assert_type(model.describe(["a.png"], ["What?"]), list[str])
    assert_type(model.describe([[image, image]], "What?"), list[str])
    assert_type(model.describe(image, ["What?", "Who?"]), list[str])
    chat: list[dict[str, Any]] = [{"role": "user", "content": "What?"}]
    assert_type(model.describe(image, chat), str)
    assert_type(model.describe(chat), str)
    assert_type(model.describe(image, [chat]), list[str])
    assert_type(eah.edit(model), LVLM)
    assert_type(eah.edit(mine, eah.EAH()), Mine)
    assert_type(eah.edit(model, eah.PAI()).describe(image), str)
    assert_type(eah.intervene(model), eah.EAHPatch)
    assert_type(eah.intervene(model, eah.EAH()), eah.EAHPatch)
    assert_type(eah.intervene(model, eah.PAI()), Patch)
    assert_type(eah.load(), LVLM)
    assert_type(eah.score_sinks(model, image), eah.SinkMap)
    assert_type(eah.EAH(layers=(1,)), eah.EAH)
    assert_type(eah.PAI.paper(), eah.PAI)
    assert_type(eah.Condition("EAH", eah.EAH()), eah.Condition)
"""
WRONG = """
import eah_interp as eah

eah.EAH(layrs=(1,))
eah.score_sinks(eah.load(), "a.png", defnition="paper")
"""


def test_a_checker_knows_what_comes_back_and_refuses_what_does_not_exist(tmp_path):
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SOURCE)
    wrong.write_text(WRONG)
    root = Path(__file__).parents[1]
    # What `make lint` has found out is not found out again.
    options = ["--config-file", root / "pyproject.toml", "--cache-dir", CACHE]
    said, errors, _ = api.run([*map(str, options), str(right), str(wrong)])
    assert not errors
    assert '"layrs"' in said
    assert '"defnition"' in said
    assert "Found 2 errors in 1 file (checked 2 source files)" in said
