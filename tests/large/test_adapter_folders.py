"""An adapter's folder is not taken for something else where PEFT is not installed."""

import sys

import pytest

import eah_interp as eah
from eah_interp.errors import ExtraMissingError


def test_an_adapter_without_peft_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "base", "peft_type": "LORA"}'
    )
    (tmp_path / "adapter_model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ExtraMissingError, match=r"needs peft: .*eah-interp\[large\]"):
        eah.load(tmp_path)
