"""Claims about AMBER's score: a slow reference from its rules, trap by trap."""

import json
import math
import random

import pandas as pd
import pytest

from eah_interp.benchmarks import score_amber
from eah_interp.benchmarks.amber import (
    AmberScore,
    read_amber_annotations,
    read_amber_answers,
    read_amber_queries,
    read_amber_words,
)
from eah_interp.errors import InputError

ODD = ["Yes", "No", "yes", "no", "Yes.", "No, there is not.", "Maybe", ""]
TYPES = [
    "discriminative-hallucination",
    "discriminative-attribute-state",
    "discriminative-attribute-number",
    "discriminative-attribute-action",
    "discriminative-relation",
    "relation",
]
OF = {
    "all": TYPES,
    "existence": TYPES[:1],
    "attribute": TYPES[1:4],
    "state": [TYPES[1]],
    "number": [TYPES[2]],
    "action": [TYPES[3]],
    "relation": TYPES[4:],
}


def rate_slowly(items, kind):
    """Rate exact answers by the script's rules: offsets, rounding, no is positive."""
    own = [item for item in items if item["type"] in OF[kind]]
    offset = 0.001 * (3 if kind == "attribute" else 1)
    right = answered_no = truth_no = hit = 0
    for item in own:
        if item["truth"] == "yes":
            if item["response"] == "Yes":
                right += 1
        else:
            truth_no += 1
            if item["response"] == "No":
                right += 1
        if item["response"] == "No":
            answered_no += 1
            if item["truth"] == "no":
                hit += 1
    accuracy = round(right / (len(own) + offset) * 100, 1)
    precision = round(hit / (answered_no + offset) * 100, 1)
    recall = round(hit / (truth_no + offset) * 100, 1)
    small = 0.001 if kind == "existence" else 0.0001
    p, r = precision / 100, recall / 100
    return accuracy, precision, recall, round(2 * p * r / (p + r + small) * 100, 1)


def describe_slowly(captions, relations, safe, alike):  # noqa: C901 - as its rules
    """Count captions as the script does, with two lists and a walk for each noun."""
    words = [w for key in relations for w in [key, *relations[key]]]
    sums = dict.fromkeys(("bad", "nouns", "cover", "truth", "cog", "hallu", "clean"), 0)
    for caption in captions:
        nouns = [n for n in caption["nouns"] if n in words]
        sides = []
        for key in ("truth", "hallu"):
            names = caption[key]
            known = [(w, i) for i, o in enumerate(names) for w in relations[o]]
            sides.append(known + [(o, i) for i, o in enumerate(names)])
        covered, imagined, bad = set(), set(), 0
        for noun in nouns:
            if noun in safe:
                continue
            exact = [i for w, i in sides[0] if w == noun]
            if exact:
                covered.add(exact[0])
                continue
            for test in (lambda a, b: a == b, lambda a, b: a == b or alike(a, b)):
                for word, i in sides[1]:
                    if test(noun, word):
                        imagined.add(i)
                        break
            for word, i in sides[0]:
                if noun == word or alike(noun, word):
                    covered.add(i)
                    break
            else:
                bad += 1
        sums["bad"] += bad
        sums["nouns"] += len(nouns)
        sums["cover"] += len(covered)
        sums["truth"] += len(caption["truth"])
        sums["cog"] += len(imagined)
        sums["hallu"] += len(caption["hallu"])
        sums["clean"] += bad == 0
    n = len(captions)
    return (
        round(sums["bad"] / (0.001 + sums["nouns"]) * 100, 1),
        round(sums["cover"] / (0.001 + sums["truth"]) * 100, 1),
        round(100 - sums["clean"] / (0.001 + n) * 100, 1),
        round(sums["cog"] / (0.001 + sums["hallu"]) * 100, 1),
    )


def make_items(rng, n, answers=ODD):
    kinds = [rng.choice(TYPES) for _ in range(n)] + TYPES
    return [
        {
            "id": number,
            "type": kind,
            "truth": rng.choice(["yes", "no"]),
            "response": rng.choice(answers),
        }
        for number, kind in enumerate(kinds, start=5)
    ]


def tables_of(items):
    annotations = [{"truth": [], "hallu": [], "label": None} | dict(i) for i in items]
    for one in annotations:
        if isinstance(one["truth"], str):
            one |= {"label": one["truth"] == "yes", "truth": []}
    given = [{"id": i["id"], "answer": i["response"]} for i in items]
    return pd.DataFrame(given), pd.DataFrame(annotations)


@pytest.mark.parametrize("seed", range(20))
def test_yes_no_results_are_the_slow_reference_s(seed):
    rng = random.Random(seed)
    items = make_items(rng, rng.randint(0, 120), ODD if seed % 3 else ODD[:2])
    answers, annotations = tables_of(items)
    found = score_amber(answers, annotations=annotations)
    for kind in OF:
        rates = found.official[kind]
        got = (rates.accuracy, rates.precision, rates.recall, rates.f1)
        assert got == rate_slowly(items, kind), kind
    assert found.captions is None
    assert found.n_missing == 0


def test_only_exactly_yes_and_no_count_and_the_corrected_reading_takes_words():
    items = [
        {"id": n, "type": TYPES[0], "truth": "no", "response": text}
        for n, text in enumerate(["No", "no", "No.", "**No**", "There isn't", "Hm"])
    ]
    answers, annotations = tables_of(items)
    found = score_amber(answers, annotations=annotations)
    assert found.official["all"].recall == round(100 / 6.001, 1)
    assert found.official["all"].n_neither == 5
    assert found.corrected["all"].recall == pytest.approx(100 * 5 / 6)
    assert found.corrected["all"].n_neither == 1


def test_no_is_the_positive_class():
    items = [
        {"id": 1, "type": TYPES[5], "truth": "yes", "response": "No"},
        {"id": 2, "type": TYPES[5], "truth": "no", "response": "No"},
        {"id": 3, "type": TYPES[5], "truth": "no", "response": "Yes"},
    ]
    answers, annotations = tables_of(items)
    rates = score_amber(answers, annotations=annotations).corrected["relation"]
    assert (rates.precision, rates.recall, rates.f1) == (50.0, 50.0, 50.0)


def test_the_divisors_that_begin_at_a_thousandth_show():
    """100 % of one question is printed as 99.9, and F1 of nothing is 0, not NaN."""
    items = [{"id": 1, "type": TYPES[0], "truth": "no", "response": "No"}]
    answers, annotations = tables_of(items)
    found = score_amber(answers, annotations=annotations)
    assert found.official["all"].accuracy == 99.9
    assert found.corrected["all"].accuracy == 100
    items = [{"id": 1, "type": TYPES[0], "truth": "yes", "response": "Yes"}]
    answers, annotations = tables_of(items)
    found = score_amber(answers, annotations=annotations)
    assert found.official["existence"].f1 == 0
    assert math.isnan(found.corrected["existence"].f1)


RELATIONS = {
    "wall": ["building", "brick"],
    "building": [],
    "dog": ["puppy"],
    "cloud": [],
    "sky": ["air"],
    "person": ["man", "woman"],
}
SAFE = frozenset({"light", "air"})


def alike(a, b):
    return {a, b} in ({"puppy", "brick"}, {"cloud", "building"}, {"man", "dog"})


@pytest.mark.parametrize("similar", [None, alike])
@pytest.mark.parametrize("seed", range(20))
def test_captions_are_the_slow_reference_s(seed, similar):
    rng = random.Random(seed)
    objects, captions = list(RELATIONS), []
    vocabulary = [*objects, "building", "brick", "puppy", "air", "man", "lamp", "light"]
    for number in range(rng.randint(1, 30)):
        names = rng.sample(objects, rng.randint(1, 6))
        cut = rng.randint(1, len(names))
        nouns = rng.choices(vocabulary, k=rng.randint(0, 9))
        captions.append(
            {
                "id": number,
                "type": "generative",
                "truth": names[:cut],
                "hallu": names[cut:],
                "nouns": nouns,
                "response": " ".join(nouns),
            }
        )
    answers, annotations = tables_of(captions)
    found = score_amber(
        answers,
        annotations=annotations,
        relations=RELATIONS,
        safe_words=SAFE,
        similar=similar,
        nouns=str.split,
    ).captions
    slow = describe_slowly(captions, RELATIONS, SAFE, similar or (lambda *_: False))
    assert (found.chair, found.cover, found.hal, found.cog) == slow


def test_a_word_of_one_object_that_is_another_covers_both_only_when_corrected():
    items = [
        {
            "id": 1,
            "type": "generative",
            "truth": ["building", "wall"],
            "hallu": [],
            "response": "building",
        }
    ]
    answers, annotations = tables_of(items)
    found = score_amber(
        answers, annotations=annotations, relations=RELATIONS, nouns=str.split
    )
    assert found.captions.cover == 50.0  # the wall alone, whose word it is
    assert found.captions_corrected.cover == 100.0
    assert math.isnan(found.captions_corrected.cog)


def test_nouns_are_found_with_nltk_case_kept(nltk_data):
    items = [
        {
            "id": 1,
            "type": "generative",
            "truth": ["dog"],
            "hallu": ["cloud"],
            "response": "Two dogs run under the clouds near a wall.",
        }
    ]
    answers, annotations = tables_of(items)
    found = score_amber(answers, annotations=annotations, relations=RELATIONS)
    assert found.captions_corrected.chair == pytest.approx(200 / 3)
    assert found.captions_corrected.cog == 100
    assert found.captions_corrected.cover == 100


def test_the_released_files_are_read_whole(reference_data):
    folder = reference_data / "released/amber"
    annotations = read_amber_annotations(folder / "annotations.json")
    assert len(annotations) == 15220
    told = annotations[annotations.type == "generative"]
    assert len(told) == 1004
    relations, safe = read_amber_words(
        folder / "relation.json", folder / "safe_words.txt"
    )
    assert len(relations) == 340
    assert "individual" in safe
    captions = pd.DataFrame({"id": told.id, "answer": told.truth.map("|".join)})
    found = score_amber(
        captions,
        annotations=annotations,
        relations=relations,
        safe_words=safe,
        nouns=lambda text: text.split("|"),
    )
    assert found.captions.cover <= found.captions_corrected.cover == 100
    assert found.captions.hal == pytest.approx(0, abs=0.2)


@pytest.mark.slow
def test_the_released_queries_are_answered_rightly_by_the_annotations(reference_data):
    folder = reference_data / "released/amber"
    annotations = read_amber_annotations(folder / "annotations.json")
    right = annotations[annotations.type != "generative"]
    asked = read_amber_queries(folder / "query_discriminative.json")
    assert len(asked) == 14216
    assert set(asked.id) == set(right.id)
    answers = pd.DataFrame(
        {"id": right.id, "answer": right.label.map({True: "Yes", False: "No"})}
    )
    found = score_amber(answers, annotations=annotations)
    assert found.corrected["all"].accuracy == 100
    assert found.official["all"].n == 14216
    assert sum(found.official[k].n for k in ("existence", "attribute", "relation")) == (
        14216
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1", "type": "relation", "truth": "yes"}, "a whole number under 'id'"),
        ({"id": 1, "type": "other", "truth": "yes"}, "expected a type of"),
        ({"id": 1, "type": "relation", "truth": "maybe"}, "expected the truth yes"),
        (
            {"id": 1, "type": "generative", "truth": "a"},
            "a list of words under 'truth'",
        ),
    ],
)
def test_bad_annotations_are_refused_with_their_line(row, message, write):
    fine = {"id": 9, "type": "relation", "truth": "no"}
    path = write("annotations.json", json.dumps([fine, row], indent=0))
    with pytest.raises(InputError, match=rf"annotations\.json:6: {message}|{message}"):
        read_amber_annotations(path)


def test_answers_that_do_not_fit_are_refused(write):
    path = write("a.json", [{"id": 1, "response": "Yes"}, {"id": 1, "response": "No"}])
    with pytest.raises(InputError, match=r"a\.json:2: id 1 stands in .*:1 already"):
        read_amber_answers(path)
    items = [{"id": 1, "type": TYPES[0], "truth": "no", "response": "No"}]
    answers, annotations = tables_of(items)
    with pytest.raises(InputError, match="got 1 of 1 without one, such as id 2"):
        score_amber(answers.assign(id=2), annotations=annotations)
    told = [{"id": 1, "type": "generative", "truth": ["tree"], "hallu": []}]
    answers, annotations = tables_of([{**told[0], "response": "a tree"}])
    with pytest.raises(InputError, match=r"1 answers are captions: expected relations"):
        score_amber(answers, annotations=annotations)
    with pytest.raises(InputError, match="lack the annotated object 'tree'"):
        score_amber(answers, annotations=annotations, relations=RELATIONS)


def test_the_published_score_is_of_both_tasks(tmp_path):
    items = [
        {"id": 1, "type": TYPES[0], "truth": "no", "response": "No"},
        {
            "id": 2,
            "type": "generative",
            "truth": ["dog"],
            "hallu": [],
            "response": "dog cloud",
        },
        {"id": 3, "type": TYPES[0], "truth": "no", "response": "No"},
    ]
    answers, annotations = tables_of(items)
    found = score_amber(
        answers[:2], annotations=annotations, relations=RELATIONS, nouns=str.split
    )
    expected = (100 - found.captions.chair + found.official["all"].f1) / 2
    assert found.score == expected
    assert found.n_missing == 1
    assert set(found.frame().variant) == {"official", "corrected"}
    assert AmberScore.load(found.save(tmp_path)) == found
    shown = [text.get_text() for text in found.plot().axes[0].get_yticklabels()]
    assert shown == ["F1, all", "F1, existence", "CHAIR", "Cover", "Hal", "Cog"]
