"""Claims about the ledger: its files, its verdicts, and where its evidence is found."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.cli import app
from eah_interp.errors import InputError, SettingsError
from eah_interp.finders import HeadScores
from eah_interp.statistics import Effect
from eah_interp.studies import StudyRun
from eah_interp.studies.claims import Finding, judge
from eah_interp.studies.conditions import list_kinds
from eah_interp.studies.found_heads import (
    FINDERS,
    find_followers,
    find_speakers,
    set_aside,
)
from eah_interp.studies.items import toy_items
from eah_interp.studies.ledger import (
    ClaimAnswer,
    examine_model,
    examine_outputs,
    examine_toy,
    find_claim,
    list_claims,
    match_files,
    read_claim,
    tabulate_claims,
    write_claim,
)
from tests.benchmarks.released import load_reader

FEW = Draws(resamples=200)
FIRST = {
    *("eah-1", "eah-2", "eah-3", "eah-4", "var", "pai", "heads-guided", "vcd"),
    *("opera", "selective-eos", "cd-says-yes", "pih", "vhr", "spin", "ad-hh"),
}


# -- the files -----------------------------------------------------------------------


def test_every_claim_says_what_would_refute_it_and_what_it_is_shown_beside():
    claims = list_claims()
    assert set(claims) >= FIRST
    for name, claim in claims.items():
        assert claim.name == name
        assert claim.refuted_by.endswith(".")
        assert claim.controls, name
        assert claim.paper["year"] >= 2018
        assert claim.read_in.endswith("."), name
        assert claim.paper["url"].startswith("https://"), name
        assert all(" " in author for author in claim.paper["authors"]), name
        assert not any("et al" in author for author in claim.paper["authors"]), name
        assert any(test.decides for test in claim.tests) or claim.answers
        text = write_claim(claim)
        assert claim.refuted_by in text
        for one in claim.outputs:
            assert {test.task for test in claim.tests} >= {one.task}, name
            assert all(len(digest) == 64 for f in one.files for digest in f.sha256)
            assert all(file.path in text for file in one.files)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("paraphrase:", "claim:", r"mine\.yaml:\d+: claim: expected one of the keys"),
        ("metric: CHAIR_S", "metric: CHAIRS", r"tests\.0\.metric: expected 'accuracy'"),
        ("below zero", "lower", r"tests\.0\.expected: expected 'below zero'"),
        ("f7d6", "zzzz", r"outputs\.0\.patched\.sha256\.0: "),
        ('title: "Visual contrastive decoding"\n', "", "title: expected this key"),
        ("task: caption\n", "task: yes_no\n", r"outputs\.0: expected questions with"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(tmp_path, before, after, message):
    from importlib.resources import files

    text = files("eah_interp").joinpath("claims/vcd.yaml").read_text()
    assert before in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message):
        read_claim(path)


def test_a_claim_of_ones_own_is_read_from_its_file(tmp_path):
    from importlib.resources import files

    path = tmp_path / "mine.yaml"
    path.write_text(files("eah_interp").joinpath("claims/vcd.yaml").read_text())
    assert find_claim(str(path)).name == "mine"
    with pytest.raises(SettingsError, match=r"a claim of the ledger \(ad-hh, .*'none'"):
        find_claim("none")
    with pytest.raises(InputError, match="cannot read"):
        find_claim(str(tmp_path / "none.yaml"))


def test_the_page_has_every_claim_as_its_file_says_it():
    """`python docs/bench/claims.py` makes it; numbers are those of its evidence."""
    page = (Path(__file__).parents[2] / "docs/claims.md").read_text()
    for name, claim in list_claims().items():
        assert f"`eah-interp claims show {name}`" in page
        said = [line for line in write_claim(claim).splitlines()[1:] if line[0] != " "]
        assert f"Claimed, in our words: {claim.paraphrase}" in said
        for line in said:
            assert f"- {line}\n" in page, name


def test_a_paper_is_cited_by_what_is_known_of_it():
    found = find_claim("vcd")
    row = tabulate_claims({"vcd": found}).rows[0]
    assert row[2] == "Leng et al., 2024, arXiv:2311.16922"
    assert "Sicong Leng, Hang Zhang, Guanzheng Chen" in write_claim(found)
    known = {"title": "On heads", "year": 2024}
    for authors, cited in [
        ([], "2024"),
        (["Ann Lee"], "Lee, 2024"),
        (["Ann Lee", "Bo Ray"], "Lee and Ray, 2024"),
        (["Ann Lee", "Bo Ray", "Cy Orr"], "Lee et al., 2024"),
    ]:
        paper = {**known, "authors": authors} if authors else known
        one = dataclasses.replace(found, paper=paper, read_in="")
        assert tabulate_claims({"x": one}).rows[0][2] == cited
        text = write_claim(one)
        assert f"Paper: On heads. {', '.join(authors)}".rstrip(". ") in text
        assert "Read in" not in text


# -- verdicts ------------------------------------------------------------------------


def finding(low, high, **more):
    effect = Effect(estimate=(low + high) / 2, low=low, high=high, level=0.95, n=9)
    return Finding(what="x", effect=effect, **more)


BELOW, ACROSS, ABOVE = finding(-3.0, -1.0), finding(-1.0, 1.0), finding(1.0, 3.0)
UNDEFINED = Finding(what="x", why="undefined: no spread")
ABSENT = Finding(what="x", why="no file")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([BELOW], "holds"),
        ([BELOW, ABSENT], "holds"),
        ([BELOW, ACROSS], "cannot be told"),
        ([BELOW, UNDEFINED], "cannot be told"),
        ([BELOW, ABOVE], "does not hold"),
        ([ABSENT], "not measured"),
        ([], "not measured"),
        ([BELOW, dataclasses.replace(ABOVE, decides=False)], "holds"),
        ([dataclasses.replace(BELOW, decides=False)], "not measured"),
        ([dataclasses.replace(ABOVE, expected="above zero")], "holds"),
    ],
)
def test_a_verdict_goes_by_what_decides(findings, verdict):
    assert judge(findings) == verdict


# -- released outputs ----------------------------------------------------------------


@pytest.fixture
def files(reference_data):
    folder = reference_data / "released/captions"
    return {
        "annotations": folder / "ground_truth_nltk.json",
        "synonyms": reference_data / "chair/chair_vocab.json",
        "lemmatize": load_reader(str(reference_data / "nltk_data")),
    }


def test_files_are_found_by_their_hash_whatever_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/any.txt").write_bytes(b"outputs")
    digest = hashlib.sha256(b"outputs").hexdigest()
    assert match_files(tmp_path, [digest, "0" * 64]) == {
        digest: tmp_path / "deep/any.txt"
    }
    with pytest.raises(InputError, match="expected a folder of released outputs"):
        match_files(tmp_path / "none", [digest])


def copy_released(reference_data, tmp_path, *names):
    """Copy released captions under other names: they are found by their hash."""
    folder = reference_data / "released/captions"
    for number, name in enumerate(names):
        shutil.copy(folder / f"less-is-more_{name}.jsonl", tmp_path / f"{number}.txt")


@pytest.mark.slow
def test_vcd_shows_nothing_beyond_its_interval(reference_data, files, tmp_path):
    copy_released(reference_data, tmp_path, "r1_llava-1.5-7b", "r2_vcd")
    vcd = examine_outputs(find_claim("vcd"), tmp_path, draws=FEW, **files)
    assert vcd.verdict == "cannot be told"
    matched = vcd.findings[0]
    assert matched.effect.estimate == pytest.approx(0.0, abs=0.5)
    assert any("'nltk'" in note for note in vcd.notes)


def test_selective_eos_hallucinates_less_matched_too(reference_data, files, tmp_path):
    copy_released(reference_data, tmp_path, "r1_llava-1.5-7b", "r6_selective-eos")
    eos = examine_outputs(find_claim("selective-eos"), tmp_path, draws=FEW, **files)
    assert eos.verdict == "holds"
    assert any("'nltk'" in note for note in eos.notes)
    assert ClaimAnswer.load(eos.save(tmp_path / "answer")) == eos
    raw = next(f for f in eos.findings if f.what.startswith("CHAIR_S: r6"))
    assert raw.effect.estimate == pytest.approx(36.8 - 50.0)
    lacking = [f for f in eos.findings if f.verdict == "not measured"]
    assert any("r7-llava1.5-13b.jsonl in github.com/yuezih" in f.why for f in lacking)
    record = json.loads(json.dumps(eos.to_dict()))
    assert record["verdict"] == "holds"
    assert "length-matched: r6-ours-cap against r1" in str(eos.table)


def test_an_answer_about_every_claim_is_the_same_when_saved(tmp_path):
    released = tmp_path / "released"
    released.mkdir()
    for name, claim in list_claims().items():
        answer = examine_outputs(claim, released)
        again = ClaimAnswer.load(answer.save(tmp_path / "saved"))
        assert again == answer, name
        assert again.claim == claim
        assert answer.frame().claim.eq(name).all()


def test_captions_need_files_and_what_is_not_there_is_not_measured(
    reference_data, tmp_path
):
    with pytest.raises(SettingsError, match="got no annotations and no synonyms"):
        examine_outputs(find_claim("vcd"), reference_data / "released/captions")
    found = examine_outputs(find_claim("vcd"), tmp_path)
    assert found.verdict == "not measured"
    assert "SHA-256 f8fdd4dc8f59" in found.findings[0].why
    found = examine_outputs(find_claim("pih"), tmp_path)
    assert [str(one) for one in found.findings] == ["none are known"]


def test_a_claim_with_a_part_that_nothing_shows_cannot_be_told(
    tmp_path, reference_data
):
    claim = find_claim("cd-says-yes")
    [part] = claim.unshown
    found = examine_outputs(claim, reference_data / "released/pope_answers")
    assert found.verdict == "cannot be told"
    assert part in [one.what for one in found.findings]


# -- the toy -------------------------------------------------------------------------


def test_the_toy_answers_a_claim_with_a_method(tmp_path):
    found = examine_toy(
        find_claim("pai"), tmp_path, n_scenes=6, draws=FEW, progress=False
    )
    assert {one.what.partition(":")[0] for one in found.findings} == {
        *("CHAIR_S, length-matched", "CHAIR_S", "recall", "accuracy"),
        *("false positives", "yes-ratio"),
    }
    assert found.kind == "toy"
    assert "42 items" in found.evidence


def test_the_toy_answers_eah_s_own_claims_as_studies_do(tmp_path):
    found = examine_toy(
        find_claim("eah-1"), tmp_path, n_scenes=4, draws=FEW, progress=False
    )
    assert [one.what.partition(",")[0] for one in found.findings] == [
        "mean density",
        "share of heads of density 0.2 or more",
    ]
    assert all(one.effect is not None for one in found.findings)


def test_a_method_that_is_not_here_is_not_measured(tmp_path):
    claim = find_claim("vhr")
    if "vhr" in list_kinds():
        claim = dataclasses.replace(claim, conditions=("baseline", {"kind": "none"}))
    found = examine_toy(claim, tmp_path, n_scenes=2, progress=False)
    assert found.verdict == "not measured"
    assert "not a method of this version" in found.findings[0].why
    assert not list(tmp_path.iterdir())


# -- heads that have to be found first -----------------------------------------------


def make_scores(*heads):
    """Make a result whose foremost heads are these."""
    scores = torch.zeros(1, 8, 8)
    for place, (layer, head) in enumerate(heads):
        scores[0, layer, head] = 9 - place
    return HeadScores(
        finder="prompt",
        measure="a fall",
        scores=scores,
        layers=tuple(range(8)),
        items=torch.arange(1),
        labels="signs",
    )


def test_heads_are_found_on_other_images_than_they_are_tested_on(tmp_path, monkeypatch):
    seen = []

    def find(model, items, files):
        del model, files
        seen.extend(items)
        return make_scores((0, 3), (1, 5), (0, 7))

    monkeypatch.setitem(FINDERS, "prompt", find)
    claim = find_claim("pih")
    baseline, entry = claim.conditions
    claim = dataclasses.replace(
        claim, conditions=(baseline, {**entry, "controls": {"draws": 1}})
    )
    items = toy_items(3, captions=False, samplings=("adversarial",))
    answer = examine_model(
        claim, eah.load(), items, tmp_path, draws=FEW, progress=False
    )
    run = StudyRun.load(tmp_path)
    asked = set(run.items().cluster)
    assert {item.cluster for item in seen} == {"0"}
    assert asked == {"1", "2"}
    assert "4 items" in answer.evidence
    labels = [one.what.partition(": ")[2] for one in answer.findings]
    assert labels == ["'PIH' against 'baseline'", "'PIH' against 'PIH, random heads 1'"]
    assert any("L0H3, L0H7, L1H5, found on 1 images" in note for note in answer.notes)


def test_images_of_items_set_aside_are_nobody_elses():
    items = toy_items(9, samplings=("random", "popular"))
    aside, others = set_aside(items)
    assert {item.image for item in aside}.isdisjoint(item.image for item in others)
    assert len({item.image for item in aside}) == 2
    assert sorted(one.id for one in (*aside, *others)) == sorted(i.id for i in items)
    with pytest.raises(InputError, match="2 images or more, got 1"):
        set_aside(toy_items(1))


def test_followers_are_found_on_questions_to_be_denied_and_speakers_in_captions(
    monkeypatch,
):
    """What reaches the finders, whose own tests plant heads."""
    model = eah.load()
    items = toy_items(3, samplings=("random",))
    asked = {}

    def find(_model, images, prompts, **words):
        asked.update(words, prompts=prompts, n=len(images))
        return make_scores()

    for name in ("find_prompt_heads", "find_hallucination_heads"):
        monkeypatch.setattr(f"eah_interp.studies.found_heads.{name}", find)
    files = {"annotations": None, "synonyms": None}
    find_followers(model, items, files)
    assert asked["n"] == 3
    assert asked["told"] == ["Yes"] * 3
    false = [item.prompt for item in items if item.label is False]
    assert asked["prompts"] == false
    with pytest.raises(InputError, match="no question is to be answered with no"):
        find_followers(model, toy_items(2, questions=False), files)
    truths = [item.truth for item in items if item.task == "caption"]
    said = iter(
        [
            f"There is a {truths[0][0]} and a pan.",
            f"There is a {truths[1][0]}.",
            "I can see a shell.",
        ]
    )

    def describe(_self, *_given):
        return [next(said)]

    monkeypatch.setattr(type(model), "describe", describe)
    find_speakers(model, items, files)
    assert asked["objects"] == [[truths[0][0], "pan"]]
    assert asked["truth"] == [list(truths[0])]
    assert asked["n"] == 1
    with pytest.raises(InputError, match="none of 0 captions"):
        find_speakers(model, [item for item in items if item.task != "caption"], files)


# -- the command line ----------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(app, ["claims", *map(str, words)])


def test_the_commands_list_show_and_test(tmp_path, reference_data):
    shown = run("list").stdout
    assert all(name in shown for name in FIRST)
    listed = json.loads(run("list", "--json").stdout)["claims"]
    assert {one["name"] for one in listed} >= FIRST
    shown = " ".join(run("show", "heads-guided").stdout.split())
    assert "Refuted by: A length-matched change" in shown
    assert "0c481d8f0df7ffaba06553d12ff552ef74c4b3f57d80109f8f96db90d2a26439" in shown
    folder = reference_data / "released/pope_answers"
    words = ("test", "cd-says-yes", "--outputs", folder, "--resamples", 200)
    record = json.loads(run(*words, "--json").stdout)
    assert record["verdict"] == "cannot be told"
    assert run("show", "none").exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected one of --outputs DIR, --toy and --model NAME, got none"),
        (("--toy", "--outputs", "."), "got several"),
        (("--model", "mine"), "expected --model and --study together"),
    ],
)
def test_evidence_is_of_one_kind(words, message):
    result = run("test", "vcd", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_checkpoint_is_tested_with_the_items_of_a_study_file(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(
        "items: {source: toy, n_scenes: 3, captions: false}\nconditions: [baseline]\n"
    )
    words = ("--model", "toy", "--study", study, "--out", tmp_path / "run", "--json")
    result = run("test", "pai", *words, "--resamples", 100)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["kind"] == "model"
    by_metric = {one["what"].partition(":")[0]: one for one in record["findings"]}
    assert by_metric["CHAIR_S"]["verdict"] == "not measured"
    assert (tmp_path / "run/manifest.json").is_file()
