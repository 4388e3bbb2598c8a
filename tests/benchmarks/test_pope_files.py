"""Claims about POPE's files: parsed as released, matched, scored as published."""

import json

import pandas as pd
import pytest

from eah_interp.benchmarks import (
    match_answers,
    read_pope_answers,
    read_pope_questions,
    score_answers,
)
from eah_interp.benchmarks.pope import count_turned, is_neither, says_yes
from eah_interp.benchmarks.pope_files import write_pope_questions
from eah_interp.errors import InputError, SettingsError

# Counts of the released LLaVA-1.5-13B answers: TP, FP, TN, FN (shared/data/README.md).
COUNTS = {
    "random": (1182, 31, 1379, 318),
    "popular": (1182, 59, 1441, 318),
    "adversarial": (1182, 117, 1383, 318),
}
QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a dog?", "label": "no"},
]
ANSWERS = [
    {"question": "is there a cat?", "answer": "Yes"},
    {"question": "is there a dog?", "answer": "No"},
]


def read(write, questions=QUESTIONS, answers=ANSWERS):
    return (
        read_pope_questions(write("questions.json", questions)),
        read_pope_answers(write("answers.json", answers)),
    )


# -- rules ---------------------------------------------------------------------------


def test_both_rules_read_every_reference_answer_as_their_scripts_do(reference_data):
    data = json.loads((reference_data / "pope/pope_parser_cases.json").read_text())
    cases = data["cases"] + data["halc_minigpt4_subset"]
    assert len(cases) > 300
    for case in cases:
        for rule in ("pope", "opera"):
            said = "yes" if says_yes(case["answer"], rule=rule) else "no"
            assert said == case[f"{rule}_pred"], case["answer"]


@pytest.mark.parametrize(
    ("answer", "neither"),
    [
        ("YES!", False),
        ("no\n", False),
        ("It isn\u2019t there", False),
        ("Nope", False),
        ("There is a dog", True),
        ("nothing", True),
        ("Yesterday", True),
        ("I cannot see it", True),
        ("", True),
    ],
)
def test_an_answer_is_neither_where_no_word_says_yes_or_no(answer, neither):
    assert is_neither(answer) == neither


def test_an_unknown_rule_is_refused(as_users_run_it):
    with pytest.raises(SettingsError, match="rule must be one of pope, opera, got 'x'"):
        says_yes("Yes", rule="x")


# -- released files ------------------------------------------------------------------


@pytest.mark.parametrize("split", COUNTS)
def test_released_answers_get_their_published_score(split, reference_data, write):
    data = json.loads((reference_data / "pope/pope_llava15_13b.json").read_text())
    questions, answers = [], []
    for number, image, name, label, answer in data["splits"][split]:
        image = f"COCO_val2014_{image:012}.jpg"
        text = f"Is there a {name} in the image?"
        asked = {"question_id": number, "image": image, "text": text, "label": label}
        questions.append(asked)
        answers.append({"question": text, "answer": answer})
    table = match_answers(*read(write, questions, answers))
    score = score_answers(table)
    assert (score.tp, score.fp, score.tn, score.fn) == COUNTS[split]
    assert round(score.f1, 1) == data["published_F1"][split]
    assert score.n_neither == 0


# -- formats -------------------------------------------------------------------------


def test_answers_in_order_and_by_identifier_are_the_same(write):
    in_order = match_answers(*read(write))
    llava = [
        {
            "question_id": 2,
            "prompt": "Is there a dog?\nAnswer in a word.",
            "text": "No",
        },
        {
            "question_id": 1,
            "prompt": "Is there a cat?\nAnswer in a word.",
            "text": "Yes",
        },
    ]
    by_number = match_answers(*read(write, answers=llava))
    pd.testing.assert_frame_equal(in_order, by_number)
    assert in_order.says_yes.tolist() == in_order.present.tolist() == [True, False]


def test_one_file_may_hold_questions_and_answers(write):
    both = [
        q | {"answer": a["answer"]} for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    assert score_answers(match_answers(*read(write, both, both))).accuracy == 100


def test_an_array_of_questions_is_read_as_lines_are(write):
    lines = read_pope_questions(write("lines.json", QUESTIONS))
    array = read_pope_questions(write("array.json", json.dumps(QUESTIONS, indent=4)))
    pd.testing.assert_frame_equal(
        lines.drop(columns="place"), array.drop(columns="place")
    )


def test_what_is_written_is_read_again(write, tmp_path):
    table = read_pope_questions(write("questions.json", QUESTIONS))
    write_pope_questions(table, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (
        tmp_path / "questions.json"
    ).read_text()


def test_a_guessed_answer_is_counted_as_the_rule_says_and_reported(write):
    answers = [{"answer": "A cat sits there."}, {"answer": "A dog."}]
    score = score_answers(match_answers(*read(write, answers=answers)))
    assert (score.tp, score.fp, score.n_neither) == (1, 1, 2)
    assert score.yes_ratio == 100


# -- question and answer in one record ------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["answer", "response", "output", "prediction", "pred", "model_answer", "reply"],
)
@pytest.mark.parametrize("asked", ["text", "question", "prompt"])
def test_an_answer_beside_its_question_is_the_answer(write, key, asked):
    answers = [{asked: question["text"], key: "No"} for question in QUESTIONS]
    score = score_answers(match_answers(*read(write, answers=answers)))
    assert (score.yes_ratio, score.accuracy, score.n_neither) == (0, 50, 0)


def test_a_prompt_may_stand_beside_question_and_answer(write):
    answers = [
        {"question": q["text"], "text": f"<image> {q['text']} Yes or no?", "pred": "No"}
        for q in QUESTIONS
    ]
    assert score_answers(match_answers(*read(write, answers=answers))).yes_ratio == 0


def test_one_answer_given_twice_is_one(write):
    answers = [{"answer": "No", "output": "No\n"}, {"answer": "No"}]
    assert score_answers(match_answers(*read(write, answers=answers))).yes_ratio == 0


def test_the_question_goes_before_the_text_of_a_file_of_both(write):
    both = [
        {"question": q["text"], "label": q["label"], "text": "No"} for q in QUESTIONS
    ]
    score = score_answers(match_answers(*read(write, both, both)))
    assert (score.yes_ratio, score.accuracy) == (0, 50)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"answer": "yes", "response": "No"}, r"differ: 'answer' 'yes' and 'response'"),
        (
            {"question": "Is there a cat?", "answer": "yes", "text": "No"},
            r"differ: 'answer' 'yes' and 'text' 'No'",
        ),
        (
            {"question": "Is there a cat?", "text": "is there a  cat?"},
            r"an answer under 'text', got the question",
        ),
        ({"text": "Is there a cat?"}, r":1: expected an answer, got the question"),
        (
            {"text": "Is there a cat?\nAnswer in a word.", "Response": "No"},
            r":1: expected one answer, got several that differ: 'text' .*'Response'",
        ),
        (
            {"text": "Is there a cat? Answer yes or no."},
            r":1: expected an answer, got the question",
        ),
        (
            {"text": "USER: is there a cat? Please say Yes or No. ASSISTANT: Yes"},
            r":1: expected an answer, got the question",
        ),
        (
            {"question_id": 1, "answer": "No"},
            r":2: expected 'question_id' in every object, or in none, got it in 1 of 2",
        ),
        ({"question": "Is there a cat?", "answer": "No"}, r":2: expected 'question'"),
        ({"image": "1.jpg", "answer": "No"}, r":2: expected 'image' in every object"),
    ],
)
def test_what_cannot_be_the_model_s_answer_is_refused(write, answer, message):
    answers = [answer, {"answer": "No"}]
    with pytest.raises(InputError, match=message):
        match_answers(*read(write, answers=answers))


def test_an_answer_may_repeat_its_question(write):
    answers = [{"answer": f"{q['text']} No"} for q in QUESTIONS]
    assert not match_answers(*read(write, answers=answers)).says_yes.any()


def test_answers_that_a_stricter_reading_turns_are_counted(write):
    said = ["NO", "no!", "**No**", "No", "Yes", "Yes. No dog.", "A dog", "Yes, not far"]
    questions = [{"text": f"Is there {i}?", "label": "no"} for i in range(len(said))]
    answers = [{"answer": text} for text in said]
    pope = match_answers(*read(write, questions, answers))
    assert count_turned(pope) == 4  # the first three, and the last
    opera = match_answers(*read(write, questions, answers), rule="opera")
    assert count_turned(opera) == 4  # not the first, but "Yes. No dog."


# -- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([{"text": "Is there?"}], r"questions.json:1: expected the key 'label'"),
        ([*QUESTIONS, {"text": "?", "label": "maybe"}], r":3: .* got 'maybe'"),
        ([{"label": "yes"}], r":1: expected the key 'text' or 'question'"),
        ([*QUESTIONS, QUESTIONS[0]], r":3: question_id 1 stands in .*:1 already"),
        ([{"text": "?", "label": "no", "question_id": [1]}], r":1: .*as 'question_id'"),
        ("", r"empty file; the questions of the paper are at https://"),
    ],
)
def test_bad_questions_are_refused_with_their_line(questions, message, write):
    with pytest.raises(InputError, match=message):
        read_pope_questions(write("questions.json", questions))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"answer": "Yes"}, {"answer": None}], r":2: expected text under 'answer'"),
        ([{"said": "Yes"}], r":1: expected the key 'answer' or 'text', got \['said'\]"),
    ],
)
def test_bad_answers_are_refused_with_their_line(answers, message, write):
    with pytest.raises(InputError, match=message):
        read_pope_answers(write("answers.json", answers))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (ANSWERS[:1], "one answer to each of 2 questions, in order, got 1"),
        (ANSWERS[::-1], r"answers.json:1 answers 'is there a dog\?', but .*:1, is 'Is"),
        (
            [{"question_id": n, "answer": "Yes"} for n in (1, 3)],
            r"1 questions without an answer and 1 answers without a question \(2,",
        ),
        (
            [{"question_id": n, "image": "b.jpg", "answer": "No"} for n in (1, 2)],
            "answers 'b.jpg', but the question",
        ),
    ],
)
def test_answers_to_other_questions_are_refused(answers, message, write):
    with pytest.raises(InputError, match=message):
        match_answers(*read(write, answers=answers))


FOUR = [
    {
        "question_id": n,
        "image": f"{n // 2}.jpg",
        "text": f"Is there a {o}?",
        "label": yes,
    }
    for n, (o, yes) in enumerate(
        [("cat", "yes"), ("dog", "no"), ("car", "yes"), ("boat", "no")]
    )
]
SAID = ["Yes", "No", "No", "No"]


def match(write, answers):
    return match_answers(*read(write, FOUR, answers))


@pytest.mark.parametrize("key", ["qid", "questionId", "question_id"])
def test_an_identifier_is_one_however_it_is_spelt(write, key):
    """Answers that several processes wrote are out of order, and are all right."""
    shuffled = [{key: n, "text": SAID[n]} for n in (2, 0, 3, 1)]
    assert match(write, shuffled).answer.tolist() == SAID


@pytest.mark.parametrize("key", ["id", "idx", "sample_id"])
@pytest.mark.parametrize("as_text", [False, True])
def test_numbers_that_do_not_ascend_are_refused_where_order_tells(write, key, as_text):
    made = str if as_text else int
    shuffled = [{key: made(n), "text": SAID[n]} for n in (2, 0, 3, 1)]
    with pytest.raises(InputError, match=f":2: '{key}' 0 follows 2: expected answers"):
        match(write, shuffled)
    ordered = [{key: made(7 * n), "text": SAID[n]} for n in range(4)]
    assert match(write, ordered).answer.tolist() == SAID
    asked = [{key: 0, "question": q["text"], "text": "No"} for q in FOUR]
    assert match(write, asked).answer.tolist() == ["No"] * 4


def test_images_under_another_name_must_go_together_as_the_questions_do(write):
    def say(images):
        return [{"image_id": i, "text": t} for i, t in zip(images, SAID, strict=True)]

    assert match(write, say([41, 41, 9, 9])).answer.tolist() == SAID
    with pytest.raises(InputError, match=r":2: .*image_id 41 beside .*'0.jpg'"):
        match(write, say([9, 41, 9, 41]))


def test_an_answer_s_label_is_its_question_s(write):
    labels = [q["label"] for q in FOUR]
    say = [{"label": one, "text": t} for one, t in zip(labels, SAID, strict=True)]
    assert match(write, say).answer.tolist() == SAID
    with pytest.raises(InputError, match=r":1 is labelled 'no', but the question"):
        match(write, say[::-1])
    numbers = [{"label": 1, "text": text} for text in SAID]
    assert match(write, numbers).answer.tolist() == SAID


@pytest.mark.parametrize(
    "key",
    ["predicted", "Response", "raw_output", "llava-1.5", "modelAnswer", "generated"],
)
def test_a_label_under_answer_does_not_pass_for_what_the_model_said(write, key):
    """Every such file scored 100: the label was compared with itself."""
    rows = [
        {"question": q["text"], "answer": q["label"], key: "Yes"} for q in FOUR[::-1]
    ]
    with pytest.raises(InputError, match=rf":1: .* 'no' and '{key}' 'Yes'"):
        read_pope_answers(write("answers.json", rows))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("gt_answer", "no"), ("goldLabel", "no"), ("correct_answer", "no")),
        *(("answer_id", "a1"), ("model_id", "llava"), ("answer_type", "yes/no")),
        *(("output_file", "a.png"), ("reason", "No cat is there."), ("parsed", "yes")),
        *(("generation_model", "llava"), ("metadata", {})),
    ],
)
def test_what_stands_beside_an_answer_is_not_one(write, key, value):
    rows = [{"answer": "Yes", key: value}]
    assert read_pope_answers(write("answers.json", rows)).answer.tolist() == ["Yes"]
