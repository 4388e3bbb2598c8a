"""Claims about MMVP's score, on made files in its published format."""

import random

import pytest

from eah_interp.benchmarks import score_mmvp
from eah_interp.benchmarks.mmvp import (
    list_options,
    read_mmvp_answers,
    read_mmvp_questions,
    read_option,
)
from eah_interp.errors import InputError

OPTIONS = "(a) Open (b) Not open"


def write_questions(write, n=4, correct="abba"):
    lines = ["Index,Question,Options,Correct Answer"]
    lines += [
        f'{i},"Is the door open, or not?",{OPTIONS},({correct[i - 1]})'
        for i in range(1, n + 1)
    ]
    return write("Questions.csv", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(a)", "a"),
        ("The answer is (B).", "b"),
        ("a", "a"),
        ("A.", "a"),
        ("B) it is not open", "b"),
        ("It is not open.", "b"),  # "open" is in it too
        ("Open", "a"),
        ("(a) or (b)", None),
        ("Opened", None),
        ("a door", None),  # an article is no letter
        ("c.", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_takes_is_read(answer, letter):
    assert read_option(answer, OPTIONS) == letter


def test_options_are_listed_by_letter():
    assert list_options("(a) One thing (b) Two; (or more)") == {
        "a": "One thing",
        "b": "Two; (or more)",
    }


@pytest.mark.parametrize("seed", range(10))
def test_a_pair_counts_if_both_are_right(seed, write):
    rng = random.Random(seed)
    correct = "".join(rng.choice("ab") for _ in range(12))
    questions = read_mmvp_questions(write_questions(write, 12, correct))
    said = [rng.choice(["(a)", "(b)", "hm"]) for _ in range(12)]
    rows = [
        {"question_id": i, "prompt": "?", "answer": f"({c})", "response": text}
        for i, (c, text) in enumerate(zip(correct, said, strict=True), start=1)
    ]
    rng.shuffle(rows)
    found = score_mmvp(
        read_mmvp_answers(write("answers.jsonl", rows)), questions=questions
    )
    right = [text == f"({c})" for c, text in zip(correct, said, strict=True)]
    pairs = [right[i] and right[i + 1] for i in range(0, 12, 2)]
    assert found.accuracy == pytest.approx(100 * sum(right) / 12)
    assert found.pairs == pytest.approx(100 * sum(pairs) / 6)
    assert (found.n, found.n_pairs, found.n_unread) == (12, 6, said.count("hm"))


def test_the_right_answer_beside_a_response_is_not_the_model_s(write):
    rows = [{"question_id": 1, "answer": "(a)", "response": "(b)"}]
    assert read_mmvp_answers(write("a.jsonl", rows)).answer.tolist() == ["(b)"]
    rows = [{"question_id": 1, "text": "(b)"}]
    assert read_mmvp_answers(write("a.jsonl", rows)).answer.tolist() == ["(b)"]


def test_what_does_not_fit_is_refused(write):
    path = write("Q.csv", "Index,Question\n1,a\n")
    with pytest.raises(InputError, match=r"Q\.csv: expected the columns Index"):
        read_mmvp_questions(path)
    with pytest.raises(InputError, match="expected pairs of questions"):
        read_mmvp_questions(write_questions(write, 3))
    bad = write("B.csv", f"Index,Question,Options,Correct Answer\n1,a,{OPTIONS},(c)\n")
    with pytest.raises(InputError, match="question 1: expected a number, options"):
        read_mmvp_questions(bad)
    twice = [{"question_id": 1, "text": "(a)"}] * 2
    with pytest.raises(InputError, match=r"a\.jsonl:2: question_id 1 stands in .*:1 a"):
        read_mmvp_answers(write("a.jsonl", twice))
    questions = read_mmvp_questions(write_questions(write, 2))
    answers = read_mmvp_answers(write("a.jsonl", twice[:1]))
    with pytest.raises(InputError, match="got 1 questions without an answer and 0"):
        score_mmvp(answers, questions=questions)
