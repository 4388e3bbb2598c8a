"""Every intervention is a study condition, and survives a manifest."""

import pytest

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.studies import Condition

PATCHES = (
    eah.EAH(),
    eah.PAI.paper(),
    eah.VAR(sink_dims=(3, 5), layers=(1, 2)),
    eah.Ablation(heads=("L1H2",), how="mean"),
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: type(patch).__name__)
def test_a_condition_survives_a_manifest(patch):
    condition = Condition("it", patch)
    assert Condition.from_dict(condition.to_dict()) == condition


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="one of eah, ablation, pai, var"):
        Condition.from_dict({"name": "it", "opera": {}})
