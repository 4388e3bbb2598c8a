"""A method's file is all there is: nothing else names its kind."""

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.interventions.intervention import check_layers, find_layers, our_kinds
from eah_interp.interventions.methods import METHODS
from eah_interp.studies.conditions import OURS, Condition, list_kinds
from eah_interp.studies.ledger import list_claims
from eah_interp.studies.study_file import read_condition
from eah_interp.testing import random_image

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "eah_interp/interventions/methods").glob("[!_]*.py"))


def test_every_file_is_a_method_that_studies_know():
    assert len(METHODS) >= len(FILES) > 0
    homes = {kind.__module__.rpartition(".")[2] for kind in METHODS.values()}
    assert homes == {path.stem for path in FILES}
    for name, kind in METHODS.items():
        assert getattr(eah, name) is kind
        assert OURS[kind.kind] is list_kinds()[kind.kind] is kind


def test_no_other_file_of_the_package_names_a_method():
    for path in (ROOT / "eah_interp").rglob("*.py"):
        if path.parent.name == "methods":
            continue
        named = [n for n in METHODS if re.search(rf"\b{n}\b", path.read_text())]
        assert not named, f"{path} names {named}"


def test_eah_is_listed_first_and_the_others_by_name():
    first, *others = our_kinds()
    assert (first, others) == ("eah", sorted(others))


def test_the_conditions_of_claims_about_a_method_load():
    model, kinds = eah.load(), {kind.kind for kind in METHODS.values()}
    loaded = set()
    for claim in list_claims().values():
        for entry in claim.conditions:
            if not isinstance(entry, dict) or entry.get("kind") not in kinds:
                continue
            # Heads that a claim's evidence finds first, and nulls of those.
            bare = {k: v for k, v in entry.items() if k not in ("heads", "controls")}
            (condition,) = read_condition(bare, seed=0)
            assert type(condition.patch).kind == entry["kind"]
            assert Condition.from_dict(condition.to_dict()) == condition
            if condition.patch.is_fitted or condition.patch.fits_itself:
                condition.check(model)
            else:  # heads that a finder has to find first
                with pytest.raises(SettingsError, match="needs heads"):
                    condition.check(model)
            loaded.add(entry["kind"])
    assert loaded >= {"heads_guided", "spin", "ad_hh", "vhr"}


def test_a_number_beyond_float32_is_refused_or_does_no_harm():
    model, image = eah.load(), random_image()
    needed = {
        "scale_heads": {"heads": ("L1H1",), "factor": 1.0},
        "var": {"sink_dims": (0,)},
    }
    refusals: list[str] = []
    for kind in OURS.values():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if float not in (hints[field.name], *get_args(hints[field.name])):
                continue
            try:
                settings = kind(**{**needed.get(kind.kind, {}), field.name: 1e308})
            except SettingsError as error:
                refusals.append(str(error))
                continue
            with torch.no_grad(), model.trace(image):
                eah.intervene(model, settings)
                logits = model.output.logits.save()
            assert logits.isfinite().all(), (kind, field.name)
    assert len(refusals) > 10
    assert [said for said in refusals if "1e+308" not in said] == []


def test_layers_may_be_written_by_depth():
    anatomy = eah.load().anatomy  # of eight layers
    assert anatomy.n_layers == 8

    def layers(text):
        return [site.layer for site in find_layers(text, anatomy)]

    assert layers("1,56%:") == [1, 4, 5, 6, 7]
    assert layers("16%:59%") == [1, 2, 3, 4]
    assert layers("1,-2:") == [1, 6, 7]
    assert layers("-1") == [7]
    assert layers("0,3:5,:1") == [0, 3, 4]
    with pytest.raises(SettingsError, match="none of the model's 8"):
        layers("12")
    for wrong in ("1;2", "5%%", "a:", "1,", ""):
        with pytest.raises(SettingsError, match="indices or a slice"):
            check_layers(wrong)


@pytest.mark.parametrize(
    ("text", "expected"), [("16%:59%", range(5, 19)), ("1,56%:", [1, *range(18, 32)])]
)
def test_in_a_decoder_of_32_layers_depths_are_the_papers(text, expected):
    from eah_interp.interventions.intervention import _read_slices

    assert sorted(_read_slices(text, 32)) == list(expected)
