"""The command line: what it prints is what the library says; errors are one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

import eah_interp as eah
from eah_interp.cli import app
from eah_interp.cli.options import PatchOptions
from eah_interp.cli.tables import tabulate_density
from eah_interp.interventions import SinkRule, find_sinks
from eah_interp.report.inspection import judge
from eah_interp.report.reading import (
    likeliest,
    next_tokens,
    object_token,
    read_next_token,
)
from eah_interp.report.subjects import choose_subject
from eah_interp.testing import FAMILIES, random_image, tiny_folder
from eah_interp.toy import TOYS, draw_scene, prompt_for, toy_path
from eah_interp.toy.language import ask_for

ROOT = Path(__file__).parents[1]
COMMANDS = ("demo", "report", "ask", "sinks", "models")
QUESTION = "is there a boat ?"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def run_json(*words):
    """Run a command with --json and read all of stdout as one JSON document."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def toy():
    return eah.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a checkpoint that is not the toy."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"), n_heads=8, n_kv_heads=4)


@pytest.fixture(scope="module")
def tiny(folder):
    return eah.load(folder)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    random_image(1, width=48, height=32).save(path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo once; return its JSON and the folder it wrote."""
    out = tmp_path_factory.mktemp("demo") / "new" / "out"
    record = run_json("demo", "--out", out, "--layers", "0,1", "--max-new-tokens", 2)
    return record, out


def compare(model, image, prompt, settings):
    """Return the last logits of a prompt, plain and patched, by the library alone."""
    with torch.no_grad(), model.trace(image, prompt):
        plain = model.output.logits[0, -1].save()
    with torch.no_grad(), model.trace(image, prompt):
        patch = eah.intervene(model, settings)
        patched = model.output.logits[0, -1].save()
    return plain, patched, patch


# -- help ----------------------------------------------------------------------------


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from eah_interp.cli import app\n"
        "try:\n"
        "    app(['demo', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'nnsight', 'numpy', 'pandas', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "--layers" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_whose_options_exist(command):
    listed = next(c for c in app.registered_commands if c.callback.__name__ == command)
    examples = re.findall(r"^ *eah-interp (.+)$", listed.callback.__doc__, re.MULTILINE)
    assert examples
    for example in examples:
        words = re.findall(r'"[^"]+"|\S+', example)
        assert words[0] == command
        assert run(*words, "--help").exit_code == 0, example


def test_an_unknown_option_would_be_noticed():
    assert run("demo", "--colour", "red", "--help").exit_code == 2


def test_version_is_the_packages():
    assert run("--version").stdout == f"eah-interp {eah.__version__}\n"


# -- settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, eah.EAH()),
        ({"preset": "paper", "gamma": 0.15}, eah.EAH.paper(gamma=0.15)),
        ({"preset": "official", "layers": "1"}, eah.EAH.official(layers=(1,))),
        ({"layers": "0,1", "donor": "3"}, eah.EAH(layers=(0, 1), donor=3)),
        (
            {"recipients": "0,2", "steps": "all"},
            eah.EAH(recipients=(0, 2), steps="all"),
        ),
        ({"definition": "paper", "beta": 0.1}, eah.EAH(definition="paper", beta=0.1)),
        ({"donor": "random", "seed": 4}, eah.EAH(donor="random", seed=4)),
    ],
)
def test_words_of_the_command_line_become_settings(given, meant):
    assert PatchOptions(**given).eah() == meant


# -- demo ----------------------------------------------------------------------------


def test_demo_asks_about_a_present_and_a_co_occurring_object(demo):
    record, _ = demo
    scene = draw_scene(0)
    assert record["picture"]["present"] == list(scene.objects)
    there, missing = record["questions"]
    assert there["object"] in scene.objects
    assert missing["object"] not in scene.objects
    assert (there["present"], missing["present"]) == (True, False)


def test_demo_margins_are_those_of_plain_transformers(demo, toy):
    record, _ = demo
    model = LlavaForConditionalGeneration.from_pretrained(toy_path()).eval()
    yes, no = toy.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    for question in record["questions"]:
        text = prompt_for(question["prompt"])
        inputs = toy.processor(
            images=draw_scene(0).pil(), text=text, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        margin = float(logits[yes] - logits[no])
        assert question["yes_minus_no"]["plain"] == pytest.approx(margin, abs=1e-4)


def test_demo_patches_as_the_library_does(demo, toy):
    record, _ = demo
    image = draw_scene(0).pil()
    settings = eah.EAH.from_dict(record["settings"])
    assert settings == eah.EAH(layers=(0, 1))
    for question in record["questions"]:
        _, patched, patch = compare(toy, image, question["prompt"], settings)
        yes, no = toy.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
        shown = [question["yes"]["EAH"], question["no"]["EAH"]]
        assert shown == pytest.approx(patched[[yes, no]].tolist(), abs=1e-5)
        donors = [d["head"] for d in question["donors"]["EAH"]]
        assert donors == [int(layer.donors[0]) for layer in patch.layers]
        sparsest = [d["head"] for d in question["donors"]["sparsest"]]
        assert sparsest[0] == int(patch[0].density[0].argmin())
        assert set(question["yes_minus_no"]) >= {"plain", "EAH", "sparsest", "random"}


def test_demo_densities_are_the_plain_models(demo, toy):
    record, _ = demo
    image = draw_scene(0).pil()
    sinks = eah.score_sinks(toy, image, record["sinks"]["prompt"])
    shown = torch.tensor(record["sinks"]["density"])
    assert shown.shape == (toy.n_layers, toy.n_heads)
    assert torch.equal(shown, sinks.density[0])


def test_demo_reads_object_logits_where_the_caption_names_one(demo, toy):
    record, _ = demo
    caption = record["caption"]
    assert caption["answer_start"] == "There is a"
    text = f"USER: <image>\n{caption['prompt']} ASSISTANT: There is a"
    image = draw_scene(0).pil()
    assert caption["position"] == toy.encode(image, text)["input_ids"].shape[1] - 1
    settings = eah.EAH(layers=(0, 1))
    plain, patched, _ = compare(toy, image, text, settings)
    for one in caption["objects"]:
        token = toy.tokenizer.convert_tokens_to_ids(one["token"])
        assert one["token"] == "▁" + one["object"][: len(one["token"]) - 1]
        assert one["logits"]["plain"] == pytest.approx(float(plain[token]), abs=1e-5)
        assert one["logits"]["EAH"] == pytest.approx(float(patched[token]), abs=1e-5)
    present = [one["object"] for one in caption["objects"] if one["present"]]
    assert present == record["picture"]["present"]


def test_demo_writes_its_result_a_page_and_two_pictures(demo):
    record, out = demo
    assert json.loads((out / "result.json").read_text()) == record
    for name in ("sinks.png", "picture.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    assert len(list(out.iterdir())) == 4  # with the page; nothing half-written is left


def test_demo_takes_another_model_and_picture(folder, photo, tiny):
    words = ("-m", folder, "--image", photo, "-o", "boat", "-a", "car")
    record = run_json("demo", *words, "--max-new-tokens", 1)
    assert record["model"]["name"] == str(folder)
    assert [q["prompt"] for q in record["questions"]] == [
        "Is there a boat in the image?",
        "Is there a car in the image?",
    ]
    plain, _, _ = compare(tiny, photo, record["questions"][0]["prompt"], eah.EAH())
    yes = tiny.tokenizer.convert_tokens_to_ids("yes")
    shown = record["questions"][0]["yes"]["plain"]
    assert shown == pytest.approx(float(plain[yes]), abs=1e-4)


def test_demo_shows_controls_under_the_patch():
    result = run("demo", "--scene", 1, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.stderr
    rows = re.findall(r"^(patched|sparsest|random|shuffled) +L1", result.stdout, re.M)
    assert rows == ["patched", "sparsest", "random", "shuffled"] * 2
    assert "Another picture: --scene 2" in result.stdout


def test_demo_prints_every_head_and_a_verdict(folder, photo, tiny):
    words = ("demo", "-m", folder, "--image", photo, "-p", QUESTION)
    result = run(*words, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.stderr
    rows = re.findall(r"^ +(\d) +((?:\d+\*? *){8})$", result.stdout, re.MULTILINE)
    sinks = eah.score_sinks(tiny, photo, QUESTION)
    expected = (sinks.density[0] * 100).round().int().tolist()
    assert [
        [int(cell.strip("*")) for cell in cells.split()] for _, cells in rows
    ] == expected
    donor = int(sinks.donors[0, 1])
    assert rows[1][1].split()[donor].endswith("*")
    assert "One image is an anecdote" in result.stdout


# -- ask -----------------------------------------------------------------------------


def test_ask_answers_without_and_with_eah(folder, photo, tiny):
    words = ("-m", folder, "--max-new-tokens", 3, "--donor", "2", "--steps", "all")
    record = run_json("ask", photo, QUESTION, *words)
    settings = eah.EAH(donor=2, steps="all")
    options = {"max_new_tokens": 3, "do_sample": False}
    assert record["settings"] == settings.to_dict()
    assert record["answers"]["plain"] == tiny.describe(photo, QUESTION, **options)
    patched = eah.edit(tiny, settings).describe(photo, QUESTION, **options)
    assert record["answers"]["EAH"] == patched
    plain, moved, _ = compare(tiny, photo, QUESTION, settings)
    for name, logits in (("plain", plain), ("EAH", moved)):
        top = record["next_tokens"][name]
        assert [one["id"] for one in top] == logits.topk(5).indices.tolist()
    assert [d["name"] for d in record["donors"]] == ["L1H2"]


def test_ask_prints_both_sides(folder, photo):
    result = run("ask", photo, QUESTION, "-m", folder, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.stderr
    assert "plain" in result.stdout
    assert "patched" in result.stdout


# -- sinks ---------------------------------------------------------------------------


def test_sinks_are_those_of_the_library(folder, photo, tiny, tmp_path):
    out = tmp_path / "map.png"
    words = ("-m", folder, "-p", QUESTION, "--preset", "paper", "--gamma", 0.2)
    record = run_json("sinks", photo, *words, "--top", 3, "--out", out)
    sinks = eah.score_sinks(tiny, photo, QUESTION, definition="paper")
    assert record["density"] == sinks.density[0].tolist()
    assert [row["name"] for row in record["top"]] == sinks.top(3)["name"].tolist()
    assert record["dense"] == sinks.dense(0.2)[0].tolist()
    assert record["grids"] == [[4, 4]]
    assert record["donors"][0]["head"] == int(sinks.donors[0, 1])
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_sinks_prints_the_densest_heads(folder, photo, tiny):
    result = run("sinks", photo, "-m", folder, "--top", 2)
    assert result.exit_code == 0, result.stderr
    for row in eah.score_sinks(tiny, photo).top(2).itertuples():
        assert re.search(
            rf"{row.name} +{row.density:.1%} +{row.n_sinks}", result.stdout
        )


def test_sinks_are_told_apart_where_it_is_asked_for(folder, photo, tiny, monkeypatch):
    record = run_json("sinks", photo, "-m", folder, "--kinds")
    assert set(record["kinds"]["counts"]) == {"none", "tower", "language", "both"}
    n_columns = find_sinks(tiny, photo).columns.sum()
    assert record["kinds"]["counts"]["none"] == record["n_columns"] == n_columns
    assert record["kinds"]["sinks"] == record["kinds"]["learned"] == []
    assert "kinds" not in run_json("sinks", photo, "-m", folder)

    # From here on every norm that stands out at all is a sink of the tower's.
    class Low(SinkRule):
        def __init__(self):
            super().__init__(norm_times=1.001, norm_spread=0.1)

    monkeypatch.setattr(sys.modules[find_sinks.__module__], "SinkRule", Low)
    record = run_json("sinks", photo, "-m", folder, "--kinds")
    found = find_sinks(tiny, photo)
    assert record["kinds"]["counts"]["tower"] == found.mask("tower").sum() > 0
    (first, *_) = record["kinds"]["sinks"]
    assert found.kind_of(first["column"]) == first["kind"] == "tower"
    printed = run("sinks", photo, "-m", folder, "--kinds", "--top", 1).stdout
    assert re.search(rf"{first['column']} +tower +norm", printed)


# -- models --------------------------------------------------------------------------


def test_models_lists_the_toy_and_every_family_with_its_refusal():
    record = run_json("models")
    assert record["toys"] == [
        {"name": name, "path": str(toy_path(name)), "present": True} for name in TOYS
    ]
    listed = {family["name"]: family["why"] for family in record["families"]}
    assert listed == {name: family.refused for name, family in FAMILIES.items()}
    printed = run("models").stdout
    assert all(family.model in printed for family in FAMILIES.values())
    words = " ".join(printed.split())
    assert all(why in words for why in listed.values())
    tests = {family["name"]: family["tests"] for family in record["families"]}
    assert tests["llava"] == {
        "eager": "exact",
        "sdpa": "exact",
        "transformer_lens": "exact",
    }
    assert not tests["llama"]
    assert printed.count("exact") >= 3 * 16


def test_models_examines_one_checkpoint(folder):
    record = run_json("models", "--model", folder)
    assert record["verified"]
    assert (record["n_heads"], record["n_kv_heads"]) == (8, 4)


# -- refusals ------------------------------------------------------------------------

REFUSED = {
    "missing image": (("ask", "gone.png", "hi"), 2, "no image file at gone.png"),
    "empty image": (("sinks", "zero.png"), 2, "is empty (0 bytes)"),
    "no image": (("demo", "--image", "text.png"), 2, "cannot be decoded"),
    "layer": (("ask", "photo.png", "hi", "--layers", "99"), 2, "layer 99 does not"),
    "layers": (("ask", "photo.png", "hi", "--layers", "one"), 2, "--layers must be"),
    "donor": (("demo", "--donor", "densist"), 2, "donor must be one of densest"),
    "head": (("sinks", "photo.png", "--donor", "8"), 2, "heads [8] do not exist"),
    "preset": (("demo", "--preset", "ours"), 2, "--preset must be one of"),
    "official": (("demo", "--preset", "official"), 2, "layer 15 does not exist"),
    "gamma": (("demo", "--gamma", "15"), 2, "gamma is a share"),
    "nothing asked": (("ask", "photo.png", " "), 2, "the question is empty"),
    "dtype": (("demo", "--dtype", "float12"), 2, "--dtype must be float32"),
    "device": (("demo", "--device", "abacus"), 2, "--device abacus cannot be used"),
    "folder": (("demo", "-m", "./gone"), 2, "no model at gone"),
    "hub": (("models", "-m", "nobody/nothing"), 1, "cannot load nobody/nothing"),
    "suffix": (("sinks", "photo.png", "--out", "map.txt"), 2, "--out must end in"),
    "no folder": (("sinks", "photo.png", "--out", "gone/map.png"), 2, "does not exist"),
    "file as folder": (("demo", "--out", "photo.png"), 2, "cannot make the folder"),
    "both": (("demo", "-o", "boat", "-a", "boat"), 2, "cannot be in the image and"),
    "there": (("demo", "-a", draw_scene(0).objects[0]), 2, "is in scene 0"),
    "zebra": (("demo", "-o", "zebra"), 2, "no scene can be drawn with zebra"),
}


@pytest.mark.parametrize(("words", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_line_and_an_exit_code(
    words, code, message, tmp_path, monkeypatch, as_users_run_it
):
    monkeypatch.chdir(tmp_path)
    random_image().save("photo.png")
    Path("zero.png").touch()
    Path("text.png").write_text("no picture")
    result = run(*words)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == code
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_word_that_the_tokenizer_lacks_is_refused(folder, photo):
    words = ("-m", folder, "--image", photo, "-o", "zebra", "--max-new-tokens", 1)
    result = run("demo", *words)
    assert result.exit_code == 2
    assert "no token that begins 'zebra'" in result.stderr


def test_a_text_model_is_refused(tmp_path):
    result = run("models", "-m", tiny_folder(tmp_path / "llama", "llama"))
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_figure_without_matplotlib_names_the_extra(monkeypatch, photo, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("sinks", photo, "--out", tmp_path / "map.png")
    assert result.exit_code == 1
    assert "pip install 'eah-interp[viz]'" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_too_little_memory_is_one_line_and_exit_code_1(monkeypatch, photo, error):
    def fill(*words, **more):
        raise error

    monkeypatch.setattr("eah_interp.load", fill)
    result = run("sinks", photo)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: out of memory: ")
    assert "--dtype" in result.stderr


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, photo):
    def break_down(*words, **more):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("eah_interp.load", break_down)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        CliRunner().invoke(app, ["sinks", str(photo)], catch_exceptions=False)


def test_an_interrupt_ends_with_130_and_no_traceback(monkeypatch, photo):
    def interrupt(*words, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("eah_interp.load", interrupt)
    result = run("sinks", photo)
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


# -- the pieces ----------------------------------------------------------------------


def test_a_scene_is_drawn_with_the_objects_named():
    subject = choose_subject(objects=["boat", "sun"], absent=["moon"])
    assert set(subject.present) == {"boat", "sun"}
    assert [q.present for q in subject.questions] == [True, False]
    assert subject.questions[1].prompt == ask_for("moon")
    assert {"moon", "fish"} <= set(subject.companions)
    assert "cup" not in subject.companions


def test_a_picture_alone_is_described(photo):
    (question,) = choose_subject(image=photo).questions
    assert (question.prompt, question.present) == ("Describe the image.", None)


def test_a_name_is_read_by_its_first_token_after_a_space(toy):
    text = "USER: <image>\nDescribe the image. ASSISTANT: There is a"
    token = next_tokens(toy, text, "boat")[0]
    assert toy.tokenizer.convert_ids_to_tokens(token) == "▁boat"
    reading = read_next_token(
        toy,
        draw_scene(0).pil(),
        prompt="Describe the image.",
        conditions={},
        answer_start="There is a",
    )
    assert reading.text == text
    token = object_token(toy, reading, "lighthouse")
    assert toy.tokenizer.convert_ids_to_tokens(token) == "▁light"


def test_a_row_of_the_embedding_without_a_token_has_a_name(tiny):
    beyond = len(tiny.tokenizer)
    logits = torch.arange(beyond + 1.0)
    top = likeliest(tiny, logits, k=1)
    assert top == [
        {"token": f"<no token, id {beyond}>", "id": beyond, "logit": float(beyond)}
    ]


def test_many_heads_are_laid_out_in_blocks(tiny, photo):
    sinks = eah.score_sinks(tiny, photo)
    wide = tabulate_density(sinks, donors={}, width=80).renderables
    narrow = tabulate_density(sinks, donors={}, width=30).renderables
    assert (len(wide), len(narrow)) == (2, 3)  # blocks, and the note under them
    heads = [c.header for table in narrow[:-1] for c in table.columns[1:]]
    assert heads == [f"H{head}" for head in range(8)]


def margin(plain, patched, **controls):
    logits = {"plain": plain, "EAH": patched, **controls}
    return {name: float(value) for name, value in logits.items()}


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        (
            [margin(1, 2), margin(-1, 1)],
            "made it worse: 2 of 2 questions right without",
        ),
        ([margin(1, 2), margin(1, -1)], "helped here: 1 of 2 questions right without"),
        ([margin(1, 2), margin(-1, -3)], "the same answers: 2 of 2 questions right"),
        ([margin(1, -2), margin(1, -3)], "as many answers right as without it: 1 of 2"),
        ([margin(1, 0), margin(-1, -1.5)], "0.25 logits away from the truth"),
        ([margin(1, 2), margin(-1, -2, random=-3)], "1.00 logits towards the truth"),
    ],
)
def test_the_verdict_says_plainly_what_happened(margins, said):
    controls = [{"random": m["plain"], **m} for m in margins]
    verdict = judge(
        truths=[True, False],
        margins=controls,
        present=[],
        absent=[],
        patched=[True, True],
    )
    assert said in " ".join(verdict)


def test_the_verdict_says_when_a_control_does_as_well():
    def verdict(control):
        return " ".join(
            judge(
                truths=[False],
                margins=[margin(1, -1, random=control)],
                present=[],
                absent=[],
                patched=[True],
            )
        )

    assert "does not show that it matters which head donates" in verdict(-1.0)
    assert "does not show" not in verdict(0.5)


def test_the_verdict_says_when_nothing_was_patched():
    same = [margin(1, 1)]
    verdict = judge(
        truths=[None], margins=same, present=same, absent=same, patched=[False]
    )
    assert "EAH changed nothing on 1 of 1 questions" in verdict[0]
    assert "did not change" in verdict[1]


def test_the_random_control_is_another_head_than_the_one_that_eah_chose(toy):
    image = draw_scene(0).pil()

    def donor_of(settings):
        with torch.no_grad(), toy.trace(image, "Is there a flower in the image?"):
            patch = eah.intervene(toy, settings)
        return patch.donors.item()

    # A seed that draws the very head that EAH chooses, so that the test is not idle.
    chosen = donor_of(eah.EAH())
    seed = next(
        seed
        for seed in range(100)
        if donor_of(eah.EAH(donor="random", seed=seed)) == chosen
    )
    random = eah.EAH(donor="random", seed=seed)
    conditions = {"plain": None, "EAH": eah.EAH(), "random": random}
    reading = read_next_token(
        toy, image, prompt="Is there a flower in the image?", conditions=conditions
    )
    assert reading.patches["EAH"].donors.item() == chosen
    assert reading.patches["random"].donors.item() != chosen
