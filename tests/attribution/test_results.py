"""Results come back from disk as they were, and only as what they are."""

import json

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import HeadAttribution, attribute_heads
from eah_interp.attribution.results import largest
from eah_interp.errors import ExtraMissingError, InputError, SettingsError
from eah_interp.results import Result
from eah_interp.saved_results import FIELDS
from eah_interp.testing import random_image


@pytest.fixture(scope="module")
def found():
    return attribute_heads(
        eah.load(),
        random_image(),
        objects=["fish", "boat"],
        patch=eah.EAH(),
        sources=True,
    )


def test_a_result_comes_back_from_disk_as_it_was(found, tmp_path):
    folder = found.save(tmp_path / "a" / "b")
    again = Result.load(folder)
    assert type(again) is HeadAttribution
    assert torch.equal(again.plain.sources, found.plain.sources)
    assert torch.equal(again.change.new_pattern, found.change.new_pattern)
    assert again.targets == found.targets
    assert again.spans == found.spans
    assert again.patch == found.patch
    assert again.donors.keys() == found.donors.keys()
    pd.testing.assert_frame_equal(again.frame(), found.frame())
    on_disk = pd.read_parquet(folder / "frame.parquet")
    pd.testing.assert_series_equal(on_disk["plain"], found.frame()["plain"])


def test_the_numbers_of_a_frame_add_up_to_the_value(found):
    frame = found.frame()
    sums = frame.groupby("target")[["plain", "patched"]].sum()
    torch.testing.assert_close(
        torch.tensor(sums["plain"].values).float(), found.plain.values
    )
    torch.testing.assert_close(
        torch.tensor(sums["patched"].values).float(), found.patched.values
    )
    heads = frame[frame["kind"] == "head"]
    row = heads[(heads["target"] == 1) & (heads["name"] == "L3H5")].iloc[0]
    assert row["plain"] == pytest.approx(float(found.plain.heads[1, 3, 5]))
    parts = row[["new_values", "new_pattern", "new_scale"]].sum()
    assert row["change"] == pytest.approx(parts, abs=1e-6)


def test_top_lists_each_targets_largest_heads(found):
    top = found.top(2, by="plain")
    assert top["object"].tolist() == ["fish", "fish", "boat", "boat"]
    expected = found.plain.heads[0].abs().flatten().topk(2).values
    torch.testing.assert_close(
        torch.tensor(top["plain"].abs().tolist()[:2]), expected, atol=1e-6, rtol=1e-5
    )
    with pytest.raises(SettingsError, match="k must be at least 1"):
        found.top(0)
    with pytest.raises(SettingsError, match="no column of numbers"):
        largest(found.frame(), 1, by="name")


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no saved result"):
        Result.load(tmp_path)


def test_a_result_of_another_kind_is_refused(found, tmp_path):
    folder = found.save(tmp_path)
    saved = json.loads((folder / FIELDS).read_text())
    (folder / FIELDS).write_text(json.dumps({**saved, "kind": "Path"}))
    with pytest.raises(InputError, match="of kind 'Path', expected a Result"):
        Result.load(folder)
    saved["fields"]["fields"]["patch"]["class"] = "Popen"
    (folder / FIELDS).write_text(json.dumps(saved))
    with pytest.raises(InputError, match="names 'Popen', which is no part"):
        Result.load(folder)


def test_without_pyarrow_the_extra_is_named(found, tmp_path, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(ExtraMissingError, match=r"eah-interp\[eval\]"):
        found.save(tmp_path)


def test_pictures_that_were_not_kept_are_refused():
    plain = attribute_heads(eah.load(), random_image(), objects=["fish"])
    with pytest.raises(eah.EAHError, match="sources=True"):
        plain.picture(0, layer=1, head=2)


def test_heads_are_drawn_by_layer(found):
    figure = found.plot(1)
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "plain",
        "patched",
        "change",
    ]
    drawn = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.tensor(drawn.data), found.plain.heads[1])
