"""Every result can be looked at, compared, copied, saved and loaded."""

import base64
import copy
import dataclasses
import importlib
import pickle
import re
import typing

import pandas as pd
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution.averages import ObjectResult
from eah_interp.errors import InputError, SettingsError
from eah_interp.interventions import LayerPatch, SinkMap
from eah_interp.report import Inspection
from eah_interp.results import ModelResult, Part, Result
from eah_interp.shown_results import ROWS_IN_HTML, WIDTH
from eah_interp.studies import StudyRun
from eah_interp.studies.claims import Claim
from eah_interp.testing import random_image
from eah_interp.viz import Widget
from tests.crossed import cross
from tests.made_results import LARGE, MAKERS, MODEL, SIZES, Size, make, sink_map
from tests.test_architecture import MODULES

MOST_LINES, MOST_HTML = 8, 100_000

FOLDERS = (
    *("attribution", "benchmarks", "finders", "interventions", "kernels", "lvlm"),
    "report",
    *("studies", "testing", "toy", "transformer_lens", "viz"),
)

NO_RESULTS = {
    # settings, and what a user asks with
    *("EAH", "Ablation", "PAI", "VAR", "Steer", "SinkEdit", "Intervention"),
    *("Condition", "Item"),
    *("ModelSource", "Study", "World", "Family", "Question", "NearTie", "RandomDraw"),
    # where an intervention acts, and which items go together
    *("AttentionSite", "StreamSite", "Batch"),
    # part of a setting: which heads
    "HeadList",
    # a number with its interval, which is one line by itself
    "Effect",
    # where an image is: hashable, compared by its numbers, and short by itself
    *("ImageSpan", "ImagePart"),
}
"""Public dataclasses that no call gives back as what it found."""


def public_values():
    for folder in FOLDERS:
        module = importlib.import_module(f"eah_interp.{folder}")
        for name, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""
            if not name.startswith("_") and home.startswith("eah_interp."):
                yield value


def classes_in(annotation):
    """List the classes that a return type names, also inside tuples and mappings."""
    if isinstance(annotation, type):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from classes_in(inner)


def descendants(kind):
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def own_kinds(base):
    for name in MODULES:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return {kind for kind in descendants(base) if kind.__module__.startswith("eah_")}


def test_every_dataclass_that_the_public_api_gives_back_is_a_result():
    """Those exported, and those that an exported function or method returns."""
    found = {}
    for value in public_values():
        if isinstance(value, type):
            found[value.__name__] = value
            public = [m for n, m in vars(value).items() if not n.startswith("_")]
            members = [m.fget if isinstance(m, property) else m for m in public]
        else:
            members = [value]
        for member in members:
            hints = getattr(member, "__annotations__", {})
            for kind in classes_in(hints.get("return")):
                found[kind.__name__] = kind
    strangers = {
        name
        for name, kind in found.items()
        if dataclasses.is_dataclass(kind)
        and kind.__module__.startswith("eah_interp")
        and not issubclass(kind, Part)
    }
    assert strangers == NO_RESULTS
    assert {"SinkMap", "HeadAttribution", "StudySummary", "Claim"} <= set(found)


def test_every_result_is_made_here_and_makes_no_repr_of_its_own():
    """The decorator of dataclasses would write whole tensors, and compare them."""
    assert own_kinds(Result) - {ModelResult, ObjectResult} == set(MAKERS)
    for kind in own_kinds(Part):
        assert kind.__repr__ is Part.__repr__, kind
        assert kind.__eq__ is Part.__eq__, kind
        assert kind.__hash__ is Part.__hash__, kind
        assert dataclasses.is_dataclass(kind) or kind is Result, kind
    names = sorted(kind.__name__ for kind in own_kinds(Part))
    assert len(names) == len(set(names)), "saved files find classes by their names"
    for kind in MAKERS:
        assert kind.frame is not Result.frame, kind
        assert kind.plot is not Result.plot, kind
        assert "ax" in kind.plot.__annotations__, kind


@pytest.mark.parametrize(("kind", "size"), cross([*MAKERS], [*SIZES]))
def test_a_result_is_shown_in_a_few_lines_of_which_each_stands_in_its_table(kind, size):
    found = make(kind, SIZES[size])
    lines = repr(found).splitlines()
    assert lines[0].startswith(kind.__name__)
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert "\x00" not in repr(found)
    first = found._first(3)
    assert first is None or len(first) <= 3
    frame = found.frame()
    assert isinstance(frame, pd.DataFrame)
    if first is not None and not first.empty and set(first) <= set(frame):
        merged = first.drop_duplicates().merge(frame, how="inner")
        assert len(merged) >= len(first.drop_duplicates())


@pytest.mark.parametrize(
    ("kind", "size"), cross([*MAKERS], ["two items", "nothing", "NaN", "odd names"])
)
def test_a_result_is_shown_in_a_notebook(kind, size):
    shown = make(kind, SIZES[size])._repr_html_()
    assert len(shown) <= MOST_HTML
    assert "<script" not in shown
    assert shown.count("<tr>") <= ROWS_IN_HTML + 1
    for picture in re.findall(r"base64,([^\"]*)", shown):
        assert base64.b64decode(picture)[1:4] == b"PNG"


@pytest.mark.parametrize(("kind", "size"), cross([*MAKERS], [*SIZES]))
def test_a_result_is_the_same_when_copied_pickled_or_saved(kind, size, tmp_path):
    found = make(kind, SIZES[size])
    assert pickle.loads(pickle.dumps(found)) == found
    assert copy.copy(found) == found
    assert copy.deepcopy(found) == found
    assert hash(copy.deepcopy(found)) == hash(found)
    folder = found.save(tmp_path / "saved")
    if kind is StudyRun:  # a copy of the folder
        assert kind.load(folder).frame().equals(found.frame())
        assert type(Result.load(folder)) is kind
        with pytest.raises(InputError, match=r"no saved result: expected result\.json"):
            SinkMap.load(folder)
        return
    loaded = kind.load(folder)
    assert loaded == found
    pd.testing.assert_frame_equal(loaded.frame(), found.frame())
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".parquet"}


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_a_result_names_its_model_and_each_patch_with_its_steps(kind):
    found = make(kind, Size())
    if getattr(found, "model", "") == MODEL:
        assert MODEL in repr(found).splitlines()[0]
    names = ("eah", "settings", "patch", "source_patch", "target_patch")
    for name in names:
        if getattr(found, name, None) is not None:
            assert f"(steps='{getattr(found, name).steps}'" in repr(found)


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_a_large_result_is_shown_without_listing_all_of_it(kind, monkeypatch):
    """Twenty images of 576 tokens, 32 layers of 32 heads."""
    found = make(kind, LARGE)
    n_numbers = sum(value.numel() for value in tensors_in(found))
    few = kind is Inspection or n_numbers < 20_000
    assert not few or len(found.frame()) < 20_000
    if not few:
        monkeypatch.setattr(kind, "frame", lambda _: pytest.fail("listed all of it"))
    assert len(repr(found)) <= MOST_LINES * (WIDTH + 1)


def tensors_in(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from tensors_in(one)
    elif dataclasses.is_dataclass(value):
        yield from tensors_in(tuple(vars(value).values()))


def test_a_saved_number_that_became_a_text_is_refused(tmp_path):
    folder = make(Claim, Size()).save(tmp_path)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"high": 51.0', '"high": "51"'))
    with pytest.raises(
        InputError, match=r"cut short or changed: Effect cannot be made"
    ):
        Claim.load(folder)
    with pytest.raises(InputError, match="of kind 'Claim', expected a SinkMap"):
        SinkMap.load(folder)


def test_any_result_is_loaded_by_a_process_that_has_imported_none(tmp_path):
    """Its class, and those of its parts, are found by the names in the file."""
    import subprocess
    import sys

    kinds = [kind for kind in MAKERS if kind is not StudyRun]  # a copy of its folder
    for kind in kinds:
        make(kind, Size()).save(tmp_path / kind.__name__)
    names = sorted((kind.__name__ for kind in kinds), key="NextTokens".__ne__)
    code = (
        "from eah_interp.results import Result\n"
        f"for name in {names}:\n"
        f"    found = Result.load({str(tmp_path)!r} + '/' + name)\n"
        "    assert type(found).__name__ == name, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Equality.


def test_results_differ_where_one_number_or_label_does():
    found = sink_map(Size())
    for name, other in {
        "density": found.density + 1e-6,
        "layers": (0, 1, 5),
        "sinks": ~found.sinks,
        "definition": "paper",
        "model": "another",
        "donors": found.donors.int(),
    }.items():
        # Not replace(): shape checks refuse other dtypes, and equality must not.
        changed = copy.copy(found)
        object.__setattr__(changed, name, other)
        assert changed != found, name
        assert found != changed, name
    assert found != "a text"
    assert (found == 3) is False


def test_numbers_that_are_not_there_are_the_same_and_zero_is_not_one():
    nowhere = sink_map(Size(fill=float("nan")))
    assert nowhere == copy.deepcopy(nowhere)
    assert nowhere != sink_map(Size(fill=0.0))


# ---- Saving, in and outside a trace.


def test_save_without_a_path_is_refused_outside_a_trace():
    with pytest.raises(SettingsError, match=r"no path: .* a folder .*SinkMap\.load"):
        sink_map(Size()).save()
    with pytest.raises(SettingsError, match="no path"):
        StudyRun.load(make(StudyRun, Size()).folder).save()


def test_save_without_a_path_keeps_a_patch_inside_a_trace(tmp_path):
    model, image = eah.load(), random_image()
    with torch.no_grad(), model.trace(image, "Is there a boat in the image?"):
        patch = eah.intervene(model, eah.EAH())
        same = patch.save()
        one = patch[1]
        one.save()
        written = patch.save(tmp_path / "inside")
        written.save()
    assert same is patch
    assert isinstance(one, LayerPatch)
    assert type(patch).load(written) == patch
    assert patch.model.startswith("LlavaForConditionalGeneration (seed-0")


def test_a_sink_map_is_scored_and_kept_inside_a_session(tmp_path):
    import nnsight

    model, image = eah.load(), random_image()
    with model.session():
        sinks = eah.score_sinks(model, image, "Is there a boat?").save()
        again = nnsight.save(eah.score_sinks(model, image, "Is there a boat?"))
    assert isinstance(sinks, SinkMap)
    assert sinks == again == SinkMap.load(sinks.save(tmp_path))


def test_a_mean_ablation_that_was_traced_with_gradients_can_be_copied(tmp_path):
    model = eah.load()
    with model.trace(random_image(), "Is there a boat in the image?"):
        patch = eah.intervene(model, eah.Ablation(heads=["L1H2"], how="mean"))
    assert copy.deepcopy(patch) == patch == type(patch).load(patch.save(tmp_path))
    assert "steps='all'" in repr(patch)


def test_an_edited_model_and_its_sinks_say_what_was_done_to_it():
    patched = eah.edit(eah.load(), eah.EAH(donor="sparsest", steps="all"))
    assert "EAH(steps='all'" in repr(patched)
    sinks = eah.score_sinks(patched, random_image(), "Is there a boat?")
    assert sinks.patches == patched.patches
    assert "patch: EAH(steps='all'" in repr(sinks)
    assert pickle.loads(pickle.dumps(sinks)) == sinks


# ---- A patch of a user's own.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Louder(eah.Ablation):
    """An intervention of a user's own, at the level of a module."""

    kind: typing.ClassVar[str] = "louder-than-results"

    factor: float = 2.0

    def repeat(self, kept, n_rows):
        return super().repeat(kept, n_rows)


def test_a_result_of_ones_own_intervention_is_copied_pickled_and_saved(tmp_path):
    found = dataclasses.replace(
        make(next(k for k in MAKERS if k.__name__ == "HeadAttribution"), Size()),
        patch=Louder(heads=("L1H2",), factor=3.0),
    )
    for again in (
        pickle.loads(pickle.dumps(found)),
        copy.deepcopy(found),
        type(found).load(found.save(tmp_path)),
    ):
        assert again == found
        assert type(again.patch) is Louder
    assert "Louder(steps='all'" in repr(found)


def second(scores, density, *, layer):
    return density.argsort(dim=1, descending=True)[:, 1]


def test_a_donor_rule_of_ones_own_is_shown_by_its_name():
    found = dataclasses.replace(
        make(next(k for k in MAKERS if k.__name__ == "EAHPatch"), Size()),
        eah=eah.EAH(donor=second),
    )
    assert "donor=second" in repr(found)
    assert pickle.loads(pickle.dumps(found)) == found


# ---- Figures in a user's own axes.


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_a_plot_is_drawn_into_given_axes_or_says_that_it_has_several(kind):
    from matplotlib.figure import Figure

    found = make(kind, Size())
    figure = Figure()
    axes = figure.add_subplot()
    if kind.__name__ in ("BroadcastScores", "HeadPatterns", "PictureAttribution"):
        with pytest.raises(SettingsError, match=r"leave ax out.*figure\.axes"):
            found.plot(ax=axes)
        assert not axes.has_data()
        assert len(found.plot().axes) >= 2
        return
    assert found.plot(ax=axes) is figure
    assert axes.has_data()
    with pytest.raises(SettingsError, match="ax must be one axes of matplotlib"):
        found.plot(ax="left")
    assert found.plot() is not figure


def test_without_matplotlib_a_notebook_shows_the_table(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = sink_map(Size())._repr_html_()
    assert "<table" in shown
    assert "<img" not in shown


# ---- Pieces, and what is no result but is printed all the same.


def test_a_widget_is_shown_by_what_it_is_and_lists_its_numbers():
    patterns = make(next(k for k in MAKERS if k.__name__ == "HeadPatterns"), Size())
    widget = patterns.show_tokens(query=1)
    assert isinstance(widget, Widget)
    assert len(repr(widget)) <= 2 * WIDTH
    table = widget.frame()
    row = table[(table["name"] == "L0H1 patched")]
    assert float(row["value"].sum()) == pytest.approx(
        float(patterns.patched.rows[0, 1, 0].sum()), abs=1e-5
    )
    assert pickle.loads(pickle.dumps(widget)) == widget


def test_spans_scenes_cases_and_studies_are_written_in_a_few_lines():
    model, image = eah.load(), random_image()
    from eah_interp.attribution import pose
    from eah_interp.studies import Condition, Study, toy_items
    from eah_interp.toy import draw_scene

    case = pose(model, image, objects=["boat"])
    study = Study(model, toy_items(50), [Condition("EAH", eah.EAH())])
    for value in (
        *sink_map(LARGE).spans[0],
        draw_scene(0),
        case,
        case.readout,
        study,
        StudyRun.load(make(StudyRun, Size()).folder).manifest,
        layer_scores := make(LayerPatch, LARGE).scores,
        make(next(k for k in MAKERS if k.__name__ == "LogitLens"), LARGE).plain,
    ):
        lines = repr(value).splitlines()
        assert len(lines) <= 3, value
        assert max(map(len, lines)) <= 2 * WIDTH, value
    assert draw_scene(0) == draw_scene(0) != draw_scene(1)
    assert layer_scores == copy.deepcopy(layer_scores)
