"""The page shows the result's own numbers, as text, in one small file."""

import base64
import html
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.errors import InputError, SettingsError
from eah_interp.report import inspect_image, write_report
from eah_interp.report.page import render
from eah_interp.report.reading import PATCHED, PLAIN, next_tokens
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.made_results import Size, circuits
from tests.report.conftest import BOLD, SCRIPT
from tests.report.reading import Page, numbers

FOUR_DECIMALS = 0.5e-4


@pytest.fixture(scope="module")
def read(page):
    return Page(page.read_text())


def test_densities_on_the_page_are_the_results(found, read):
    _, *rows = read.table("Sink density in %")
    shown = torch.tensor([numbers(row[1:]) for row in rows])
    expected = 100 * found.sink_map.density[0]
    assert shown.shape == expected.shape
    assert (shown - expected).abs().max() <= 0.5
    starred = {
        (int(row[0][1:]), head)
        for row in rows
        for head, cell in enumerate(row[1:])
        if cell.endswith("*")
    }
    assert starred == set(found.donors.items())


def test_yes_and_no_on_the_page_are_the_readings(found, read):
    for one in found.asked:
        _, *rows = read.table(f"Logits of Yes and No: {one.question.prompt}")
        assert len(rows) == len(one.yes) == 5
        for row, name in zip(rows, one.yes, strict=True):
            shown = numbers(row[3:6])
            assert shown[0] == pytest.approx(one.yes[name], abs=0.005)
            assert shown[1] == pytest.approx(one.no[name], abs=0.005)
            assert shown[2] == pytest.approx(one.margins[name], abs=0.005)


def test_every_object_is_listed_under_every_control(found, read):
    header, *rows = read.table("All 20 objects")
    controls = [name for name in found.asked[0].yes if name not in (PLAIN, PATCHED)]
    assert [h for h in header if h.endswith("logit")] == [
        f"{name}: logit" for name in controls
    ]
    shown = {row[0]: row for row in rows}
    for one in found.caption.objects:
        cells = numbers(shown[one.object][3:])
        plain, patched = one.logits[PLAIN], one.logits[PATCHED]
        assert cells[:3] == pytest.approx([plain, patched, patched - plain], abs=0.0051)
        expected = [one.logits[name] for name in controls]
        assert cells[3:6] == pytest.approx(expected, abs=0.0051)
        assert cells[6:] == pytest.approx([v - plain for v in expected], abs=0.0051)


def test_a_reader_can_add_up_each_logit_from_the_rows_above_it(found, read):
    tables = read.all_tables("Direct effects on")
    n_targets = sum(len(one.heads.targets) for one in found.explained)
    assert len(tables) == n_targets == 5
    for _, *rows in tables:
        *parts, total = rows
        assert parts[-1][0].startswith("remainder")
        for column in (1, 2, 3):
            (sum_shown,) = numbers([total[column]])
            added = sum(numbers([row[column] for row in parts]))
            assert added == pytest.approx(sum_shown, abs=FOUR_DECIMALS * len(rows))


def test_what_heads_add_up_to_is_the_logit_that_was_read(found):
    yes_no, _, objects = found.explained
    margin = found.asked[0].margins
    assert float(yes_no.heads.plain.values[0]) == pytest.approx(margin[PLAIN], abs=1e-3)
    patched = float(yes_no.heads.patched.values[0])
    assert patched == pytest.approx(margin[PATCHED], abs=1e-3)
    logits = {one.object: one.logits for one in found.caption.objects}
    for target, value in zip(
        objects.heads.targets, objects.heads.plain.values.tolist(), strict=True
    ):
        assert value == pytest.approx(logits[target.label][PLAIN], abs=1e-3)


def test_heads_maps_on_the_page_are_the_results(found, read):
    objects = found.explained[-1].heads
    target = objects.targets[1].label
    _, *rows = read.table(f"{target}, change, in logits")
    shown = torch.tensor([numbers(row[1:]) for row in rows])
    change = objects.patched.heads[1] - objects.plain.heads[1]
    assert (shown - change).abs().max() <= 0.00051


def test_stars_in_the_donors_table_are_its_sinks(found, read):
    patch = found.asked[-1].reading.patches[PATCHED]
    for layer in patch.layers:
        head = int(layer.donors[0])
        _, *rows = read.table(f"Donor L{layer.layer}H{head}: score of each patch")
        starred = [cell.endswith("*") for row in rows for cell in row[1:]]
        sinks = layer.scores.sinks(patch.eah.beta)[0, head]
        assert starred == sinks[list(found.span.columns)].tolist()
        assert sum(starred) == round(100 * float(layer.density[0, head]))


def test_heads_before_and_after_are_the_scores_of_the_broadcast(found, read):
    scores = found.broadcast.scores
    judged = scores.columns[0]
    for title, run in scores.runs.items():
        _, *rows = read.table(f"Layer 0, {title}: score / sink threshold")
        shown = torch.tensor([numbers(row[1:]) for row in rows])
        expected = run.ratio[0, 0][:, judged]
        assert shown.shape == expected.shape
        assert (shown - expected).abs().max() <= 0.0051
        starred = [[cell.endswith("*") for cell in row[1:]] for row in rows]
        assert starred == run.sinks[0, 0][:, judged].tolist()
    donor = found.donors[0]
    assert all(row[1:] == rows[donor][1:] for row in rows)  # all look like the donor


def test_attention_on_the_page_is_that_of_the_last_position(found, read):
    patterns = found.broadcast.patterns
    donor = f"L0H{found.donors[0]}"
    assert patterns.names[0] == donor
    assert len(patterns.names) == 2
    for name in patterns.names:
        _, *rows = read.table(f"{name}, plain, image: attention in %")
        shown = torch.tensor([numbers(row[1:]) for row in rows])
        (grid,) = patterns.picture(name)
        assert (shown - 100 * grid).abs().max() <= 0.0051
    after = [read.table(f"{n}, patched, image") for n in patterns.names]
    assert after[0] == after[1]


def test_settings_versions_and_model_are_stated(found, read):
    settings = read.table("Settings of EAH")[1:]
    assert [row[0] for row in settings] == list(eah.EAH().to_dict())
    assert {row[0]: row[1] for row in settings}["layers"] == "0, 1"
    facts = dict(read.table("Model and versions")[1:])
    for name in ("python", "torch", "transformers", "nnsight", "eah_interp"):
        assert facts[f"version of {name}"] == found.versions[name]
    assert facts["attention backend"] == "sdpa"
    assert len(facts["weights, SHA-256"]) == 64
    assert facts["date"] == found.made_at


def test_the_page_is_small_and_needs_nothing_else(page, read):
    assert page.stat().st_size < 5_000_000
    named = [
        value
        for _, attrs in read.tags
        for name, value in attrs.items()
        if name in ("src", "href", "action", "data", "srcset", "poster")
    ]
    assert named
    assert all(link.startswith(("#", "data:image/")) for link in named)
    tags = {tag for tag, _ in read.tags}
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(tags)
    assert "https:" not in page.read_text().replace("data:", "")


@pytest.mark.slow
def test_a_large_noisy_picture_with_many_layers_stays_under_the_bound(toy, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1100, 1500, 3), dtype=np.uint8)
    found = inspect_image(
        toy,
        noise,
        objects=["boat"],
        eah=eah.EAH(layers=tuple(range(8))),
        caption=False,
        max_new_tokens=1,
    )
    path = write_report(found, tmp_path / "noise.html")
    assert path.stat().st_size < 5_000_000


def test_the_page_can_be_read_without_seeing_it(read):
    attributes = dict(read.tags)
    assert attributes["html"]["lang"] == "en"
    levels = [level for level, _ in read.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    images = [a for tag, a in read.tags if tag == "img"]
    assert all(len(a["alt"]) > 30 for a in images)
    assert all(a.get("scope") for tag, a in read.tags if tag == "th")
    assert all(caption for caption, _ in read.tables)
    assert all(int(a.get("tabindex", 0)) <= 0 for _, a in read.tags)
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in read.tags if tag == "a"}
    assert targets <= set(ids)
    tags = [tag for tag, _ in read.tags]
    assert tags.count("main") == tags.count("header") == tags.count("nav") == 1
    # every figure but the picture itself has its numbers under it
    assert tags.count("figure") == len(images)
    assert read.text.count("The numbers of this figure") == len(images) - 1


def test_what_a_user_writes_is_shown_as_text(evil):
    text = evil.read_text()
    assert "<script" not in text
    assert "onerror=" not in text.replace("onerror=&#34;", "")
    read = Page(text)
    assert SCRIPT in read.text
    assert f'The logit of "{BOLD}" was not read' in read.text
    assert '<img src=x onerror="alert(2)">' in read.text


def test_what_cannot_be_measured_is_said_and_the_rest_is_shown():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    found = inspect_image(
        model, random_image(), "What?", objects=["zebra"], max_new_tokens=1
    )
    assert found.caption.objects == ()
    text = Page(render(found)).text
    assert 'The logit of "zebra" was not read' in text
    assert "Nothing was split by heads" in text
    assert "What could not be measured" in text


def test_a_blank_token_is_no_beginning_of_a_word(toy):
    text = "USER: <image>\nDescribe the image. ASSISTANT: There is a"
    assert next_tokens(toy, text, "zeppelin") == []
    assert len(next_tokens(toy, text, "boat")) == 1


def test_tokens_without_a_place_have_densities_but_no_picture(tmp_path):
    model = eah.wrap(tiny_lvlm("idefics2"), tiny_processor("idefics2"))
    found = inspect_image(model, random_image(), "What?", max_new_tokens=1)
    assert not found.span.spatial
    text = Page(write_report(found, tmp_path / "b.html").read_text()).text
    assert "sinks are not drawn on the image" in text
    assert "Sink density in %" in text


def test_a_question_put_as_we_put_it_has_a_truth(toy):
    found = inspect_image(
        toy,
        random_image(),
        ["Is there a boat in the image?", "Why?"],
        absent=["boat"],
        caption=False,
        max_new_tokens=1,
    )
    assert [one.question.present for one in found.asked] == [False, None]
    assert found.caption.answers == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"questions": " "}, "a question is empty"),
        ({"objects": ["boat"], "absent": ["boat"]}, "boat is named more than once"),
        ({"objects": [" "]}, "an object has no name"),
    ],
)
def test_impossible_questions_are_refused(toy, asked, message):
    with pytest.raises(InputError, match=message):
        inspect_image(toy, random_image(), **asked)


def test_a_layer_that_is_not_there_is_refused_before_any_work(toy):
    with pytest.raises(SettingsError, match="layer 99"):
        inspect_image(toy, random_image(), eah=eah.EAH(layers=(99,)))


@pytest.mark.parametrize(
    "given",
    [
        {"eah": 0},
        {"eah": np.array([0, 1])},
        {"eah": eah.PAI()},
        {"title": "half \ud800"},
        {"answer_start": 1},
        {"answer_start": "half \ud800"},
        {"name": 1},
        {"command": None},
    ],
)
def test_settings_and_words_of_another_kind_are_refused(toy, as_users_run_it, given):
    with pytest.raises(
        (InputError, SettingsError), match=r"EAH settings|a text|half a"
    ):
        inspect_image(toy, random_image(), objects=["boat"], **given)


def test_a_page_is_whole_or_not_there(found, tmp_path):
    with pytest.raises(SettingsError, match="cannot write"):
        write_report(found, tmp_path / "gone" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_on_the_page_is_the_picture(found, read):
    source = next(a["src"] for tag, a in read.tags if tag == "img")
    shown = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    factor = shown.width // found.subject.image.width
    small = shown.resize(found.subject.image.size, Image.Resampling.NEAREST)
    assert factor == 6
    assert np.array_equal(np.asarray(small), np.asarray(found.subject.image))


def test_sinks_of_each_kind_and_norms_are_on_the_page(found, read):
    """The toy has none of either kind, and the page says so."""
    assert "0 are sinks of the vision tower" in " ".join(read.text.split())
    _, *rows = read.table("Norms of image columns")
    own = found.kinds.columns[0]
    norms = [*found.kinds.tower_norms[0], *found.kinds.norms[0]]
    assert len(rows) == len(norms)
    for row, expected in zip(rows, norms, strict=True):
        median, largest = numbers(row[1:])
        assert median == pytest.approx(float(expected[own].median()), rel=0.01)
        assert largest == pytest.approx(float(expected[own].max()), rel=0.01)


def test_planted_sinks_are_listed_by_kind_and_drawn():
    processor = tiny_processor("llava")
    model = eah.wrap(tiny_lvlm("llava"), processor)
    column = model.spans(model.encode(random_image(), "Hello?"))[0][0].columns[2]
    with model.edit() as (_, planted):
        planted.layers_output[1][0, column, 3] = 3000.0
    planted.patches = ()
    image = random_image()
    found = inspect_image(planted, image, "Hello?", caption=False, max_new_tokens=2)
    read = Page(render(found))
    (_, row) = read.table("Sinks by kind")
    assert row[:2] == [str(column), "language"]
    assert "Sinks of each kind on the image" in read.text


def test_a_circuit_on_the_page_has_its_edges_and_shares(found):
    own = circuits(Size(layers=2, heads=3))
    before, after = Page(render(found)), Page(render(found, circuits=[own]))
    (_, *edges) = after.table("Edges of the circuit")
    listed = own.list_edges()
    assert [row[0] for row in edges] == list(listed["name"])
    for row, (_, expected) in zip(edges, listed.iterrows(), strict=True):
        assert numbers(row[2:3])[0] == pytest.approx(expected["score"], abs=0.5e-4)
        assert numbers(row[3:])[0] == pytest.approx(expected["minimality"], abs=0.5e-3)
    (_, *sizes) = after.table("Share of the behaviour by size")
    shown = torch.tensor([numbers(row[2:5]) for row in sizes])
    drawn = torch.stack([own.share_of(one) for one in own.random]).mean(0)
    expected = torch.stack([own.faithfulness, own.completeness, drawn], 1)
    torch.testing.assert_close(shown, expected, atol=0.5e-3, rtol=0, check_dtype=False)
    n_images = [sum(tag == "img" for tag, _ in page.tags) for page in (before, after)]
    assert n_images[1] == n_images[0] + 2
    assert "Circuits" not in before.text


def test_what_a_circuit_is_about_is_text(found):
    text = render(found, circuits=[circuits(Size(label=SCRIPT))])
    assert SCRIPT not in text
    assert html.escape(SCRIPT) in text


def test_what_is_no_circuit_is_refused(found, tmp_path, as_users_run_it):
    with pytest.raises(SettingsError, match="circuits: expected what find_circuits"):
        write_report(found, tmp_path / "page.html", circuits=["L0H1"])
