"""Groups of tokens keep a pattern's sums, and say what they are."""

import numpy as np
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import read_patterns
from eah_interp.errors import InputError, SettingsError
from eah_interp.testing import FAMILIES, random_image
from eah_interp.viz import group_patterns
from tests.tiny_families import encode, share_model, share_plain

WIDE = random_image(1, width=48)


def read(family, *, query="all", heads=("L1H0", "L2H3"), **options):
    model = share_model(family)
    pictures, questions = [random_image(0), WIDE], [" what ?", " is there a cat ?"]
    if FAMILIES[family].build_processor is None:
        encoding = encode(family)
    else:
        encoding = model.encode(pictures, questions)
    return read_patterns(model, encoding, heads=heads, query=query, **options), encoding


@pytest.mark.parametrize("by", ["image", "part", "row"])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl"])
def test_groups_sum_and_average_the_models_own_pattern(family, by):
    found, encoding = read(family)
    with torch.no_grad():
        oracle = share_plain(family)(**encoding, output_attentions=True).attentions
    item = 1  # the wide picture
    keep = found.span(item).columns[1:3]
    grouped = group_patterns(found, item=item, by=by, keep=keep)
    assert grouped.whole
    sums = grouped.weights.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    members = sorted(p for group in grouped.groups for p in group)
    real = encoding["attention_mask"][item].nonzero().flatten().tolist()
    assert members == real  # each token once, no padding
    for number, (layer, head) in enumerate(found.heads):
        own = oracle[layer][item, head].double().tolist()
        for row, query in enumerate(grouped.groups):
            paid = [0.0] * len(grouped.groups)
            for column, group in enumerate(grouped.groups):
                for x in query:
                    paid[column] += sum(own[x][y] for y in group) / len(query)
            got = grouped.weights[number, row].tolist()
            assert got == pytest.approx(paid, abs=1e-5)


def test_labels_say_which_part_row_and_patch():
    found, _ = read("llava_onevision")
    span = found.span(1)
    names = [part.name for part in span.parts]
    image = group_patterns(found, item=1)
    assert image.labels.count("[image 1]") == 1
    parts = group_patterns(found, item=1, by="part").labels
    for name in set(names):
        wanted = [f"[image 1:{name}]"] if names.count(name) == 1 else []
        assert all(label in parts for label in wanted)
    rows = group_patterns(found, item=1, by="row").labels
    n_rows = sum(len(part.columns) for part in span.parts)
    assert sum("[image 1:" in label and ":r" in label for label in rows) == n_rows
    others = set(span.columns) - {c for p in span.parts for r in p.columns for c in r}
    assert ("[image 1:other]" in rows) == bool(others)
    last = span.parts[-1].columns[1][0]
    kept = group_patterns(found, item=1, keep=[last])
    assert kept.labels[kept.groups.index((last,))] == f"<{names[-1]}:patch:r1c0>"
    if others:
        alone = group_patterns(found, item=1, keep=others).labels
        assert f"<token:{min(others)}>" in alone


def test_a_row_alone_keeps_its_sums_and_is_no_whole_pattern():
    found, _ = read("llava", query=-1, patch=eah.EAH())
    grouped = group_patterns(found, run="patched")
    assert not grouped.whole
    assert grouped.weights.shape[1] == 1
    row = found.row("L2H3", run="patched")
    place = grouped.labels.index("[image 1]")
    expected = float(row[found.images[0]].sum())
    assert float(grouped.weights[1, 0, place]) == pytest.approx(expected, abs=1e-6)
    text = [n for n, group in enumerate(grouped.groups) if len(group) == 1]
    expected = [float(row[grouped.groups[n][0]]) for n in text]
    assert grouped.weights[1, 0, text].tolist() == pytest.approx(expected)


def test_the_frame_lists_every_group():
    found, _ = read("llava")
    grouped = group_patterns(found, by="row")
    table = grouped.frame()
    shown = table["weight"].to_numpy().reshape(grouped.weights.shape)
    np.testing.assert_allclose(shown, grouped.weights.numpy())
    size = table[table["token"] == "[image 1:r0]"]["n_tokens"].unique()
    assert size == len(found.span(0).parts[0].columns[0])


def test_what_does_not_fit_is_refused(as_users_run_it):
    found, _ = read("llava", query=-1)
    with pytest.raises(SettingsError, match="by must be one of image, part, row"):
        group_patterns(found, by="patch")
    with pytest.raises(InputError, match=r"image tokens to keep, got \[0\]"):
        group_patterns(found, keep=[0])
    with pytest.raises(SettingsError, match="run='patched' is not there"):
        group_patterns(found, run="patched")
    with pytest.raises(SettingsError, match="item 7 does not exist"):
        group_patterns(found, item=7)
