"""Claims about files of outputs against each other: published figures, hand counts."""

import gc
import itertools
import json
import math
import random
import re
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from eah_interp.benchmarks import (
    compare_outputs,
    find_mentions,
    make_vocabulary,
    match_answers,
    plot_frontier,
    read_captions,
    read_ground_truth,
    read_pope_answers,
    read_pope_questions,
    read_synonyms,
    score_answers,
    score_captions,
)
from eah_interp.benchmarks.chair import is_loop, match_lengths
from eah_interp.benchmarks.compare import OutputComparison
from eah_interp.benchmarks.frontier import list_frontier
from eah_interp.benchmarks.mentions import load_singularizer
from eah_interp.benchmarks.paired import Draws
from eah_interp.cli import app
from eah_interp.errors import EAHError, ExtraMissingError, InputError, SettingsError
from tests.benchmarks.released import CAPTIONS, load_reader, name_objects, read_lines

FEW = Draws(resamples=200)


@pytest.fixture
def reader(reference_data):
    return load_reader(str(reference_data / "nltk_data"))


@pytest.fixture
def released(reference_data, reader):
    """Compare released captions, by their short names."""

    def compare(base, *others, truth="pattern", draws=None):
        folder = reference_data / "released/captions"
        return compare_outputs(
            folder / CAPTIONS[base],
            [folder / CAPTIONS[name] for name in others],
            annotations=folder / f"ground_truth_{truth}.json",
            synonyms=reference_data / "chair/chair_vocab.json",
            lemmatize=reader,
            draws=draws,
        )

    return compare


# -- published figures ---------------------------------------------------------------


PRINTED = {
    "r1": (50.0, 15.4, 77.1),
    "r2": (48.6, 14.9, 77.3),
    "r6": (36.8, 11.3, 74.3),
}
"""CHAIR_S, CHAIR_I and recall."""


@pytest.mark.parametrize("other", ["r6", pytest.param("r2", marks=pytest.mark.slow)])
def test_released_captions_get_the_digits_that_their_paper_prints(released, other):
    found = released("r1", other, truth="nltk", draws=FEW)
    printed = {CAPTIONS[name]: digits for name, digits in PRINTED.items()}
    tables = zip(found.files, found.outputs.tables, strict=True)
    for file, table in tables:
        score = score_captions(table)
        got = [round(v, 1) for v in (score.chair_s, score.chair_i, score.recall)]
        assert tuple(got) == printed[f"{file.name}.jsonl"]
    last = CAPTIONS[other].removesuffix(".jsonl")
    assert found.find("CHAIR_S").base == pytest.approx(50.0)
    assert found.find("CHAIR_S", last).value == pytest.approx(PRINTED[other][0])


@pytest.mark.parametrize(
    ("other", "raw", "matched"),
    [
        ("r6", (-13.4, -17.4, -9.2), (-3.0, -5.2, -0.8)),
        pytest.param(
            *("r2", (-1.4, -3.0, 0.2), (0.2, -0.6, 1.0)), marks=pytest.mark.slow
        ),
    ],
)
def test_a_released_method_changes_chair_as_was_found(released, other, raw, matched):
    change = released("r1", other).find("CHAIR_S")
    for effect, expected in ((change.effect, raw), (change.matched, matched)):
        assert effect.estimate == pytest.approx(expected[0], abs=0.05)
        assert (effect.low, effect.high) == pytest.approx(expected[1:], abs=0.5)


@pytest.mark.parametrize(
    ("kind", "f1"),
    [
        pytest.param("random", 85.50, marks=pytest.mark.slow),
        pytest.param("popular", 84.47, marks=pytest.mark.slow),
        ("adversarial", 82.12),
    ],
)
def test_released_answers_get_their_f1(reference_data, kind, f1):
    folder = reference_data / "released/pope_answers"
    path = folder / f"llava-1.5-7b_greedy_{kind}.jsonl"
    questions = folder / f"questions_{kind}.jsonl"
    asked, said = read_pope_questions(questions), read_pope_answers(path)
    assert round(score_answers(match_answers(asked, said)).f1, 2) == f1
    found = compare_outputs(path, path, questions=questions, draws=FEW)
    assert round(found.find("F1").base, 2) == f1
    assert found.find("F1").effect.estimate == 0
    assert found.find("accuracy").p == 1
    assert [file.n for file in found.files] == [3000, 3000]


def test_a_second_way_of_computing_agrees_caption_by_caption(
    reference_data, reader, nltk_data
):
    """On 1,000 captions: names one step at a time, counts by loops."""
    folder = reference_data / "released/captions"
    path = reference_data / "chair/chair_vocab.json"
    content, vocabulary = json.loads(path.read_text()), read_synonyms(path)
    lists = json.loads((folder / "ground_truth_nltk.json").read_text())
    n_absent = n_mentions = n_seen = 0
    for name in ("r1", "r6"):
        captions = read_captions(folder / CAPTIONS[name])
        truth = read_ground_truth(
            folder / "ground_truth_nltk.json", vocabulary=vocabulary
        )
        table = find_mentions(
            captions, truth=truth, vocabulary=vocabulary, lemmatize=reader
        )
        given = read_lines(folder / CAPTIONS[name])
        for row, line in zip(table.itertuples(), given, strict=True):
            named = name_objects(line["caption"], content)
            assert row.mentions == named, line["image_id"]
            there = lists[str(line["image_id"])]
            assert row.absent == [name for name in named if name not in there]
            n_seen += 1
            n_absent += len(row.absent)
            n_mentions += len(named)
            spans = zip(row.starts, row.ends, strict=True)
            texts = [row.caption[start:end].lower() for start, end in spans]
            for text, name_found in zip(texts, named, strict=True):
                words = [w for w, o in vocabulary.objects.items() if o == name_found]
                heads = {part[0] for word in words for part in word.split()}
                assert heads & {part[0] for part in text.split()}, (text, words)
    assert (n_seen, n_mentions > 5000, n_absent > 500) == (1000, True, True)


# -- what is computed, by slow loops -------------------------------------------------

NAMES = ["cup", "pan", "fork", "lamp", "sofa", "bed"]


@pytest.fixture
def made(write):
    """Write two files of made captions, their images and a synonym list."""

    def make(seed, n=40, **changes):
        rng = random.Random(seed)
        files = []
        for side in range(2):
            lines = []
            for image in range(n):
                words = rng.choices([*NAMES, "a", "and", "red"], k=rng.randint(0, 14))
                lines.append({"image_id": image, "caption": " ".join(words)})
            files.append(write(f"side{side}.jsonl", changes.get(f"side{side}", lines)))
        truth = {str(i): rng.sample(NAMES, rng.randint(1, 4)) for i in range(n)}
        return {
            "base": files[0],
            "patched": files[1],
            "annotations": write("truth.json", json.dumps(truth)),
            "synonyms": write("synonyms.txt", "\n".join(NAMES)),
            "lemmatize": str.split,
            "draws": FEW,
        }

    return make


def count_slowly(lines, truth, cut_to=None):
    """Sum what the metrics are made of, caption by caption."""
    total = dict.fromkeys(
        ("s", "absent", "mentions", "found", "truth", "objects", "words"), 0
    )
    for number, line in enumerate(lines):
        words, there = line["caption"].split(), set(truth[str(line["image_id"])])
        kept, seen = [], []
        for word in words:
            if word in NAMES and word not in seen:
                if cut_to is not None and len(seen) == cut_to[number]:
                    break
                seen.append(word)
            kept.append(word)
        named = seen if cut_to is not None else [w for w in kept if w in NAMES]
        total["s"] += any(name not in there for name in named)
        total["absent"] += sum(name not in there for name in named)
        total["mentions"] += len(named)
        total["found"] += len(set(named) & there)
        total["truth"] += len(there)
        total["objects"] += len(set(named))
        total["words"] += len(kept)
    return total


def rates(total, n):
    return {
        "CHAIR_S": 100 * total["s"] / n,
        "CHAIR_I": 100 * total["absent"] / total["mentions"],
        "recall": 100 * total["found"] / total["truth"],
        "precision": 100 * total["found"] / total["objects"],
        "F1": 200 * total["found"] / (total["objects"] + total["truth"]),
        "mentions": total["mentions"] / n,
        "objects": total["objects"] / n,
        "words": total["words"] / n,
    }


@pytest.mark.parametrize("seed", range(5))
def test_every_change_is_what_slow_loops_count_raw_and_matched(made, seed):
    given = made(seed)
    found = compare_outputs(**given)
    sides = [read_lines(given[name]) for name in ("base", "patched")]
    truth = json.loads(given["annotations"].read_text())
    k = [
        min(len({w for w in side["caption"].split() if w in NAMES}) for side in pair)
        for pair in zip(*sides, strict=True)
    ]
    raw = [rates(count_slowly(side, truth), 40) for side in sides]
    cut = [rates(count_slowly(side, truth, k), 40) for side in sides]
    for name, old in raw[0].items():
        change = found.find(name)
        assert change.base == pytest.approx(old)
        assert change.effect.estimate == pytest.approx(raw[1][name] - old)
        expected = cut[1][name] - cut[0][name]
        if change.matched is None:
            assert expected == 0
            assert change.matched_undefined == "equal by construction"
        else:
            assert change.matched.estimate == pytest.approx(expected)


def test_the_adjusted_change_is_least_squares_of_words_and_side(made):
    given = made(11)
    found = compare_outputs(**given).adjusted[0]
    truth = json.loads(given["annotations"].read_text())
    lines, values = [], []
    for side, name in enumerate(("base", "patched")):
        for line in read_lines(given[name]):
            words, there = line["caption"].split(), truth[str(line["image_id"])]
            lines.append([1, len(words), side])
            values.append(len({w for w in words if w in NAMES} - set(there)))
    solved = np.linalg.lstsq(np.array(lines, float), np.array(values), rcond=None)[0]
    assert found.slope.estimate == pytest.approx(solved[1])
    assert found.effect.estimate == pytest.approx(solved[2])
    assert found.effect.low < found.effect.estimate < found.effect.high


def test_captions_of_one_length_have_no_adjusted_change(made):
    given = made(0, side0=[{"image_id": i, "caption": "cup pan"} for i in range(40)])
    given["patched"] = given["base"]
    [found] = compare_outputs(**given).adjusted
    assert found.effect is None
    assert "its divisor is zero" in found.undefined


def test_a_changed_share_has_mcnemars_exact_test(made):
    given = made(3)
    change = compare_outputs(**given).find("CHAIR_S")
    p = stats.binomtest(change.gained, change.gained + change.lost).pvalue
    assert change.p == pytest.approx(p)
    assert change.gained - change.lost == pytest.approx(
        change.effect.estimate * 40 / 100
    )


def test_intervals_draw_images_and_not_captions(made):
    """One image drawn moves its captions on both sides: a file against itself is 0."""
    given = made(5)
    given["patched"] = given["base"]
    found = compare_outputs(**given)
    for change in found.changes:
        if change.effect is not None:
            assert change.effect.estimate == 0
    assert [file.name for file in found.files] == [
        given["base"].as_posix(),
        f"{given['base'].as_posix()} (2)",
    ]


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("There is a man. There is a man.", True),
        ("There is a man.\n\nThere  is a MAN", True),
        ("A man. A man.", False),  # two words are no sentence to count
        ("the cat sat " * 4, True),
        ("yes " * 8, False),
        ("yes " * 9, True),
        ("one two three four five six seven one two three four five six seven", False),
        ("", False),
    ],
)
def test_a_caption_loops_where_it_says_the_same_again(text, loops):
    assert is_loop(text) is loops


def test_a_text_is_cut_where_its_mentions_are():
    captions = pd.DataFrame(
        [
            {
                "image_id": 1,
                "caption": 'A cup, "two cups"; a PAN, a fork.',
            }
        ]
    )
    named = find_mentions(
        captions,
        truth={1: {"cup"}},
        vocabulary=make_vocabulary([["cup"], ["pan"], ["fork"]]),
        lemmatize=lambda _: ["a", "cup", "two", "cup", "a", "pan", "a", "fork"],
    )
    [row] = named.itertuples()
    spans = zip(row.starts, row.ends, strict=True)
    assert [row.caption[a:b] for a, b in spans] == ["cup", "cup", "PAN", "fork"]
    cut = match_lengths(named, other=pd.DataFrame({"mentions": [["lamp"]]}))
    assert cut.caption[0] == 'A cup, "two cups"; a '


# -- the two ground truths of COCO ---------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    images = [{"id": 1}]
    instances = {
        "images": images,
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": 3}],
    }
    told = {
        "images": images,
        "annotations": [{"image_id": 1, "caption": "Two panses."}],
    }
    (folder / "instances_val2014.json").write_text(json.dumps(instances))
    (folder / "captions_val2014.json").write_text(json.dumps(told))
    return folder


def test_the_ground_truth_of_pattern_is_read_with_that_package(
    coco, write, nltk_data, monkeypatch, reader
):
    english = types.ModuleType("pattern.en")
    english.singularize = lambda word: {"panses": "pan"}.get(word, word)
    monkeypatch.setitem(sys.modules, "pattern", types.ModuleType("pattern"))
    monkeypatch.setitem(sys.modules, "pattern.en", english)
    captions = write("c.jsonl", [{"image_id": 1, "caption": "a pan"}])
    given = {
        "base": captions,
        "patched": captions,
        "annotations": coco,
        "synonyms": write("synonyms.txt", "cup\npan"),
        "lemmatize": reader,
        "draws": FEW,
    }
    for singular, there in (("nltk", ["cup"]), ("pattern", ["cup", "pan"])):
        found = compare_outputs(**given, singular=singular)
        assert found.outputs.tables[0].truth[0] == there
        assert f"the ground truth '{singular}'" in found.describe()


def test_without_pattern_its_ground_truth_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pattern", None)
    monkeypatch.setitem(sys.modules, "pattern.en", None)
    with pytest.raises(ExtraMissingError, match=r"pip install pattern.*'nltk'"):
        load_singularizer()


# -- refusals, and what is left out --------------------------------------------------


def lines(*images, key="caption"):
    return [{"image_id": image, key: "cup"} for image in images]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(90, 91), r"expected images in common, got none .*side1\.jsonl"),
        (lines(*range(39)), r"side0\.jsonl:40: image 39 is not in .*side1.*--common"),
        (lines(*range(41)), r"side1\.jsonl:41: image 40 is not in .*side0.*--common"),
        (lines(*range(40), 3), r"side1\.jsonl:41: image 3 has a caption in .*:4"),
        ([{"question": "?", "answer": "Yes"}], r":1: expected the image under"),
        (lines(0, key="label"), r"side1\.jsonl:1: expected the key 'caption'"),
        ("image,caption\n1,a cup\n", r"side1\.jsonl:1: not JSON"),
        ("", r"side1\.jsonl: expected JSON objects, got an empty file"),
    ],
)
def test_bad_files_are_refused_with_file_line_and_remedy(made, content, message):
    with pytest.raises(InputError, match=message):
        compare_outputs(**made(0, side1=content))


def test_what_a_file_lacks_is_left_out_and_counted_where_that_is_asked(made):
    given = made(0, side1=lines(*range(30), 77))
    found = compare_outputs(**given, common=True)
    assert found.n == 30
    assert [(file.n, file.n_left_out) for file in found.files] == [(40, 10), (31, 1)]
    assert found.outputs.notes == (
        "side0: 10 of 40 left out, whose images another file lacks.",
        "side1: 1 of 31 left out, whose images another file lacks.",
    )
    kept = read_lines(given["base"])[:30]
    total = count_slowly(kept, json.loads(given["annotations"].read_text()))
    assert found.find("CHAIR_I").base == pytest.approx(rates(total, 30)["CHAIR_I"])


def test_the_order_of_a_file_does_not_matter(made):
    given = made(1)
    found = compare_outputs(**given)
    turned = read_lines(given["patched"])[::-1]
    given["patched"].write_text("\n".join(map(json.dumps, turned)))
    again = compare_outputs(**given)
    assert [c.effect for c in again.changes] == [c.effect for c in found.changes]


def test_an_image_without_ground_truth_is_named_with_its_line(made, write):
    given = made(0) | {"annotations": write("few.json", '{"0": ["cup"]}')}
    with pytest.raises(InputError, match=r"side0\.jsonl:2: .* got none of 39 of 40"):
        compare_outputs(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None, "synonyms": None}, "got neither"),
        ({"questions": "q.jsonl"}, "got both"),
        ({"synonyms": None}, "got no synonyms"),
        ({"annotations": None}, "got no annotations"),
        ({"patched": []}, "patched must be a file, or several, got none"),
    ],
)
def test_what_cannot_be_compared_is_refused(made, change, message):
    with pytest.raises(SettingsError, match=message):
        compare_outputs(**made(0) | change)


def test_a_file_that_is_not_there_is_named(made, tmp_path):
    for name in ("base", "patched", "annotations", "synonyms"):
        with pytest.raises(EAHError, match=r"none\.jsonl"):
            compare_outputs(**made(0) | {name: tmp_path / "none.jsonl"})


# -- answers -------------------------------------------------------------------------


@pytest.fixture
def asked(write):
    """Write questions about six images and two files of answers to them."""
    rows = [
        {
            "question_id": n,
            "image": f"{n % 6}.jpg",
            "text": f"Is there a thing {n}?",
            "label": "yes" if n % 2 else "no",
        }
        for n in range(24)
    ]
    said = [
        [{"question_id": n, "text": "Yes" if n % m else "No"} for n in range(24)]
        for m in (5, 3)
    ]
    return {
        "base": write("a.jsonl", said[0]),
        "patched": write("b.jsonl", said[1]),
        "questions": write("q.jsonl", rows),
        "draws": FEW,
    }


def test_answers_change_as_slow_loops_count(asked):
    found = compare_outputs(**asked)
    right = [[(n % m != 0) == (n % 2 == 1) for n in range(24)] for m in (5, 3)]
    accuracy = found.find("accuracy")
    assert accuracy.base == pytest.approx(100 * sum(right[0]) / 24)
    assert accuracy.value == pytest.approx(100 * sum(right[1]) / 24)
    gained = sum(b and not a for a, b in zip(*right, strict=True))
    lost = sum(a and not b for a, b in zip(*right, strict=True))
    assert (accuracy.gained, accuracy.lost) == (gained, lost)
    assert accuracy.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert found.find("yes-ratio").value == pytest.approx(100 * 16 / 24)
    assert accuracy.effect.n == 6  # images are drawn, not questions
    assert found.adjusted == ()


def test_answers_to_other_questions_are_refused_or_counted(asked):
    short = read_lines(asked["patched"])[:20]
    asked["patched"].write_text("\n".join(map(json.dumps, short)))
    with pytest.raises(InputError, match=r"b\.jsonl, answers to .*q\.jsonl: .*4 quest"):
        compare_outputs(**asked)
    found = compare_outputs(**asked, common=True)
    assert found.n == 20
    assert "a: 4 of 24 left out, whose questions another file lacks." in (
        found.outputs.notes
    )
    assert "4 of 24 questions are not answered in every file." in found.outputs.notes


def test_answers_without_ids_cannot_be_left_out(asked):
    asked["patched"].write_text('{"answer": "Yes"}\n' * 20)
    with pytest.raises(InputError, match=r"b\.jsonl: expected the key 'question_id'"):
        compare_outputs(**asked, common=True)


# -- shown ---------------------------------------------------------------------------


def words_of(given):
    paths = [str(given[name]) for name in ("base", "patched")]
    options = ["--annotations", str(given["annotations"])]
    return [*paths, *options, "--synonyms", str(given["synonyms"])]


def test_the_command_prints_tables_of_80_columns_json_and_a_page(
    made, nltk_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    given, page = made(2), tmp_path / "page.html"
    figure = tmp_path / "frontier.svg"
    extra = ["--out", str(page), "--frontier", str(figure), "--resamples", "200"]
    shown = CliRunner().invoke(app, ["compare", *words_of(given), *extra])
    assert shown.exit_code == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    found = compare_outputs(**given)
    change = found.find("CHAIR_S")
    assert re.search(rf"CHAIR_S +{change.base:.1f} +{change.value:.1f}", shown.stdout)
    assert str(change.effect) in shown.stdout
    assert "truth.json" in shown.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert figure.read_bytes().startswith(b"<?xml")
    assert gc.isenabled()  # which the command turns off while it works
    words = ["compare", *words_of(given), "--json", "--resamples", "200"]
    record = json.loads(CliRunner().invoke(app, words).stdout)
    assert record["command"] == "compare"
    by_name = {one["metric"]: one for one in record["changes"]}
    assert by_name["CHAIR_S"]["effect"]["estimate"] == change.effect.estimate
    assert by_name["mentions"]["matched_undefined"] == "equal by construction"
    assert record["files"][0]["sha256"] == found.files[0].sha256


def test_comparing_files_imports_nothing_that_runs_models():
    """Transformers and nnsight take seconds, and have no part in it."""
    code = (
        "import sys\n"
        "import eah_interp.benchmarks, eah_interp.cli.compare, eah_interp.cli.layout\n"
        "heavy = {'transformers', 'nnsight'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_marks_objects_and_shows_captions_as_text(made, tmp_path):
    odd = '<script>alert("cup")</script> a fork & a "pan"'
    given = made(0, side1=[{"image_id": i, "caption": odd} for i in range(40)])
    given["lemmatize"] = lambda text: re.findall(r"\w+", text)
    found = compare_outputs(**given)
    page = found.report(tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;" in page
    truth = json.loads(given["annotations"].read_text())
    kinds = dict(re.findall(r'<mark class="(\w+)" title="\w+">(\w+)<', page))
    assert set(kinds) == {"present", "absent"}
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count('<tr><th scope="row">') >= 10
    rows = re.findall(r'<tr><th scope="row">(\d+)</th><td>([^<]*)</td>', page)
    assert len(rows) == 10
    assert all(set(there.split(", ")) == set(truth[image]) for image, there in rows)


def test_the_captions_that_changed_most_come_first(made):
    from eah_interp.benchmarks.compare_page import find_changed

    given = made(4)
    found = compare_outputs(**given)
    shown = find_changed(found, 1)
    sizes = [abs(int(one.change.split()[0])) for one in shown]
    assert len(shown) == 10
    assert sizes == sorted(sizes, reverse=True)
    before, after = found.outputs.tables
    gaps = [
        abs(len(set(a.mentions) - set(a.truth)) - len(set(b.mentions) - set(b.truth)))
        for a, b in zip(before.itertuples(), after.itertuples(), strict=True)
    ]
    assert sizes == sorted(gaps, reverse=True)[:10]
    for one in shown:
        text = "".join(piece.text for piece in one.after)
        assert text == after.set_index("item").caption[one.item]


def test_a_comparison_is_the_same_when_saved(made, asked, tmp_path):
    """Also its captions, so that it can be reported and drawn again."""
    for name, given in (("captions", made(1)), ("answers", asked)):
        found = compare_outputs(**given)
        again = OutputComparison.load(found.save(tmp_path / name))
        assert again == found
        pages = [
            one.report(tmp_path / f"{name}-{n}.html").read_text()
            for n, one in enumerate((found, again))
        ]
        assert pages[0] == pages[1]
        assert found != compare_outputs(**{**given, "draws": Draws(resamples=201)})


def test_answers_that_turned_are_on_the_page(asked, tmp_path):
    page = compare_outputs(**asked).report(tmp_path / "page.html").read_text()
    assert "mended" in page
    assert "Is there a thing 3?" in page


# -- the frontier --------------------------------------------------------------------


def test_a_frontier_has_the_values_of_the_comparison(made):
    found = compare_outputs(**made(6))
    table = list_frontier(found.outputs, draws=FEW).set_index("name")
    for name in ("CHAIR_I", "recall", "words", "F1"):
        change = found.find(name)
        assert table[name].tolist() == pytest.approx([change.base, change.value])
        assert (table[f"{name}_low"] < table[name]).all()
    for axes in ("recall", "length"):
        figure = plot_frontier(found.outputs, axes=axes, draws=FEW)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["side0", "side1"]


def test_a_frontier_takes_tables_of_captions_and_refuses_answers(asked):
    table = pd.DataFrame(
        [
            {"mentions": ["cup", "pan"], "truth": ["cup"], "caption": "cup pan"},
            {"mentions": ["cup"], "truth": ["cup", "pan"], "caption": "a cup"},
        ]
    )
    row = list_frontier({"mine": table}, draws=FEW).iloc[0]
    assert pytest.approx(100 / 3) == row.CHAIR_I
    assert math.isclose(row.recall, 200 / 3)
    silent = table.assign(mentions=[[], []])
    with pytest.raises(InputError, match="CHAIR_I is not defined"):
        plot_frontier({"silent": silent}, draws=FEW)
    with pytest.raises(InputError, match="a frontier is of captions"):
        plot_frontier(compare_outputs(**asked).outputs)
    with pytest.raises(InputError, match="at least one caption"):
        list_frontier({})
    names = [f"method {n}" for n in range(20)]
    many = dict(zip(names, itertools.repeat(table), strict=False))
    assert len(plot_frontier(many, draws=FEW).axes[0].lines) >= 20
