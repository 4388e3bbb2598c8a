"""Claims about code of a user's own: donor rules and interventions, and their names."""

import functools
import json
import sys
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp import plugins
from eah_interp.cli import app
from eah_interp.cli.app import plugins as named_plugins
from eah_interp.errors import SettingsError
from eah_interp.interventions import Intervention
from eah_interp.plugins import (
    describe_plugin,
    find_plugin,
    import_plugin,
    register,
)
from eah_interp.studies import Condition, Study, toy_items
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]


def second(scores, density, *, layer):
    """The second densest head of each item."""
    return density.argsort(dim=1, descending=True, stable=True)[:, 1]


def odd_items(scores, density, *, layer):
    donors = scores.sum(dim=2).argmax(dim=1)
    return torch.where(torch.arange(len(donors)) % 2 == 1, donors, -1)


@dataclass(frozen=True, kw_only=True)
class Halve(Intervention):
    """Halves what heads write: one multiplication, by `replace`."""

    kind = "halve"
    layers: tuple[int, ...] = (1,)
    factor: float = 0.5

    def find_sites(self, anatomy):
        return [anatomy.site(layer) for layer in self.layers]

    def check_fits(self, *, n_heads, d_model):
        pass

    def apply_at(self, point):
        where = point.rows_of(self.steps)[:, :, None].expand(-1, -1, point.call.n_heads)
        point.replace(point.output * self.factor, where)


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture
def unknown(monkeypatch):
    """A session in which nothing was registered."""
    monkeypatch.setattr(plugins, "_known", {})


def logits_of(model, settings):
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        patch = eah.intervene(model, settings)
        logits = model.output.logits.save()
    return patch, logits


# -- donor functions -----------------------------------------------------------------


def test_a_donor_function_gives_the_patch_of_the_heads_that_it_names(model):
    patch, logits = logits_of(model, eah.EAH(donor=second))
    density = eah.score_sinks(model, IMAGES, PROMPTS).density[:, 1]
    expected = density.argsort(dim=1, descending=True, stable=True)[:, 1]
    assert patch.donors.tolist() == expected.tolist()
    for item, head in enumerate(expected.tolist()):
        _, named = logits_of(model, eah.EAH(donor=head))
        assert torch.equal(named[item], logits[item])


def test_items_without_a_donor_are_left_alone(model):
    patch, logits = logits_of(model, eah.EAH(donor=odd_items))
    assert patch.donors[0] == patch.donors[2] == -1
    assert patch[1].patched.tolist() == [False, True, False]
    with torch.no_grad(), model.trace(IMAGES, PROMPTS):
        plain = model.output.logits.save()
    moved = (logits - plain).abs().amax(dim=(1, 2))
    assert moved[1] > 1e-4
    assert moved[[0, 2]].max() < 1e-5


def test_a_function_is_asked_once_a_layer_and_knows_which(model):
    asked = []

    def rule(scores, density, *, layer):
        asked.append((layer, tuple(scores.shape[:2]), tuple(density.shape)))
        return density.argmax(dim=1)

    settings = eah.EAH(layers=(0, 1), donor=rule, steps="all")
    patched = eah.edit(model, settings)
    text = patched.describe(IMAGES[:2], PROMPTS[:2], max_new_tokens=3)
    assert len(text) == 2
    assert asked == [(layer, (2, 4), (2, 4)) for layer in (0, 1)]


def test_attribution_takes_it():
    toy = eah.load()
    image = eah.toy.draw_scene(0).pil()
    heads = eah.attribute_heads(
        toy, image, "Describe the image.", objects=["boat"], patch=eah.EAH(donor=second)
    )
    assert heads.frame().notna().any(axis=None)


NO_RULES = [int, print, KeyError, torch.argmax, len, lambda density: density]


@pytest.mark.parametrize("rule", NO_RULES)
def test_what_is_not_called_as_a_donor_rule_is_refused_where_it_is_set(rule):
    with pytest.raises(SettingsError, match=r"is called as donor\(scores, density, "):
        eah.EAH(donor=rule)


WRONG = {
    "floats": (torch.zeros(3), r"float32 \[3\]"),
    "one for all": (torch.tensor(0), r"int64 \[\]"),
    "a list": ([0, 1, 2], r"got list"),
    "beyond": (torch.tensor([0, 4, -2]), r"heads \[4, -2\]"),
    "flags": (torch.ones(3, dtype=torch.bool), r"got bool \[3\]"),
}


@pytest.mark.parametrize(("said", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_head_for_each_item_is_refused(said, message, model):
    def rule(scores, density, *, layer):
        return said

    with pytest.raises(SettingsError, match=message):
        logits_of(model, eah.EAH(donor=rule))


def test_settings_that_a_function_does_not_see_are_refused():
    with pytest.raises(SettingsError, match="gamma and head_0"):
        eah.EAH(donor=second, gamma=0.2)
    with pytest.raises(SettingsError, match="gamma and head_0"):
        eah.EAH.official(donor=second)


# -- names in files ------------------------------------------------------------------


def test_settings_hold_a_name_and_a_hash_and_are_refused_without_the_code(unknown):
    settings = eah.EAH(donor=second, layers=(0,))
    written = json.loads(json.dumps(settings.to_dict()))
    assert written["donor"]["plugin"].endswith(":second")
    assert eah.EAH.from_dict(written) == settings
    plugins._known.clear()
    with pytest.raises(SettingsError, match=r"imported only where you say so"):
        eah.EAH.from_dict(written)
    register(second)
    assert eah.EAH.from_dict(written) == settings
    other = {**written, "donor": {**written["donor"], "sha256": "0" * 64}}
    with pytest.raises(SettingsError, match=r"not the one that this was made with"):
        eah.EAH.from_dict(other)


def test_code_whose_source_says_not_everything_is_refused_in_files_only(model):
    head = 2

    def captures(scores, density, *, layer):
        return torch.full((len(density),), head)

    class Called:
        def __call__(self, scores, density, *, layer):
            del scores, layer
            return density.argmax(dim=1)

    partial = functools.partial(second)
    made = eval("lambda s, d, *, layer: d.argmax(dim=1)")
    for rule in (captures, Called(), partial, made):
        logits_of(model, eah.EAH(donor=rule))  # fine in a trace
        with pytest.raises(SettingsError, match=r"captures head|source that can be"):
            eah.EAH(donor=rule).to_dict()


@pytest.mark.parametrize("patch", [eah.EAH(donor=second), Halve(factor=0.25)])
def test_a_saved_result_names_code_and_is_refused_without_it(patch, unknown, tmp_path):
    toy, image = eah.load(), eah.toy.draw_scene(0).pil()
    found = eah.attribute_heads(
        toy, image, "Describe the image.", objects=["boat"], patch=patch
    )
    folder = found.save(tmp_path / "found")
    loaded = type(found).load(folder)
    assert loaded.patch == patch
    assert loaded.frame().equals(found.frame())
    plugins._known.clear()
    with pytest.raises(SettingsError, match="imported only where you say so"):
        type(found).load(folder)


def test_an_intervention_of_ones_own_stands_in_a_condition_by_name(unknown):
    condition = Condition("half", Halve(factor=0.25))
    written = json.loads(json.dumps(condition.to_dict()))
    assert written["halve"] == {"steps": "all", "layers": [1], "factor": 0.25}
    assert set(written["code"]) == {"plugin", "sha256"}
    assert Condition.from_dict(written) == condition
    plugins._known.clear()
    with pytest.raises(SettingsError, match=r"--plugin .*:Halve"):
        Condition.from_dict(written)


# -- studies and the command line ----------------------------------------------------

RULES = """
import torch
from dataclasses import dataclass
from eah_interp.interventions import Intervention

def last(scores, density, *, layer):
    return torch.full((len(density),), density.shape[1] - 1)

@dataclass(frozen=True, kw_only=True)
class Quarter(Intervention):
    kind = "quarter"
    layers: tuple[int, ...] = (1,)

    def find_sites(self, anatomy):
        return [anatomy.site(layer) for layer in self.layers]

    def check_fits(self, *, n_heads, d_model):
        pass

    def apply_at(self, point):
        where = point.rows_of(self.steps)[:, :, None].expand(-1, -1, point.call.n_heads)
        point.replace(point.output / 4, where)
"""

STUDY = """
items: {source: toy, n_scenes: 2, captions: false, samplings: [random]}
conditions:
  - baseline
  - {kind: eah, name: last, donor: {plugin: "own_rules:last"}}
  - {kind: eah, name: seven, donor: 7}
  - {kind: quarter, layers: [2]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(RULES)
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_rules", None)
    named_plugins.clear()


def test_a_study_of_own_code_runs_by_plugin_and_not_without(folder, unknown):
    runner = CliRunner()
    words = ["study", "run", "study.yaml", "--out", "found"]
    refused = runner.invoke(app, words)
    assert refused.exit_code == 2
    assert "own_rules" in refused.stderr
    assert not (folder / "found").exists()
    assert "own_rules" not in sys.modules
    own = ["--plugin", "own_rules:last", "--plugin=own_rules.py:Quarter"]
    done = runner.invoke(app, [*words, *own])
    assert done.exit_code == 0, done.stderr
    run = eah.studies.StudyRun.load(folder / "found")
    assert run.frame().error.isna().all()
    rows = run.frame().pivot_table(
        index="item", columns="condition", values="answer", aggfunc="first"
    )
    assert rows["last"].equals(rows["seven"].rename("last"))
    manifest = json.loads((folder / "found/manifest.json").read_text())
    named = {row["name"]: row for row in manifest["conditions"]}
    assert named["last"]["eah"]["donor"]["plugin"] == "own_rules:last"
    assert len(named["Quarter layers=2"]["code"]["sha256"]) == 64
    # Another rule of the same name is another study.
    (folder / "own_rules.py").write_text(RULES.replace("- 1)", "- 2)"))
    sys.modules.pop("own_rules", None)
    changed = runner.invoke(app, [*words, *own])
    assert changed.exit_code == 2
    assert "conditions" in changed.stderr


def test_a_command_takes_a_donor_of_ones_own(folder, unknown):
    eah.toy.draw_scene(0).pil().save("scene.png")
    own = ["--plugin", "own_rules:last", "ask", "scene.png", "Is there a boat?"]
    found = CliRunner().invoke(app, [*own, "--donor", "own_rules:last", "--json"])
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["settings"]["donor"]["plugin"] == "own_rules:last"


def test_what_is_not_there_is_refused_by_name(folder):
    for spec, message in {
        "own_rules:nothing": "no function or class 'nothing'",
        "no_such_module:x": "cannot be imported",
        "nowhere.py:x": "does not exist",
        "own_rules": "module:Name",
    }.items():
        with pytest.raises(SettingsError, match=message):
            import_plugin(spec)
    with pytest.raises(SettingsError, match=r"expected \{plugin"):
        find_plugin({"plugin": 3})
    assert describe_plugin(import_plugin("own_rules:last"))["plugin"]


def test_a_study_in_python_runs_own_code_and_resumes_it(tmp_path, unknown):
    toy = eah.load()
    conditions = (Condition("half", Halve()), Condition("own", eah.EAH(donor=second)))
    items = toy_items(1, captions=False, samplings=("random",))
    study = Study(toy, items, conditions)
    rows = study.run(tmp_path / "s", progress=False).frame()
    assert rows.error.isna().all()
    assert study.run(tmp_path / "s", progress=False).frame().equals(rows)
