"""Claims about MME's score: the leaderboard's sums, and a slow reference."""

import random

import pandas as pd
import pytest

from eah_interp.benchmarks import read_mme, score_mme
from eah_interp.benchmarks.mme import (
    COGNITION,
    PERCEPTION,
    TASKS,
    MmeScore,
    read_mme_answer,
)
from eah_interp.errors import InputError

SAID = [
    *("Yes", "No", "yes.", " no", "NO!", "eyes", "know", "not so", "**Yes**", "y"),
    *("Answer: yes", "no yes", "yesno", "  yes", "", "I do not know"),
]


def score_slowly(lines):
    """Score a task's lines by the script's rules, pair after pair."""
    right = both = 0
    for at in range(0, len(lines), 2):
        n_right = 0
        for line in lines[at : at + 2]:
            _, _, truth, answer = line.split("\t")
            head = answer.lower()[0:4]
            if "yes" in head:
                given = "yes"
            elif "no" in head:
                given = "no"
            else:
                given = "other"
            n_right += given == truth.lower()
        right += n_right
        both += n_right == 2
    return 100 * right / len(lines) + 100 * both / (len(lines) / 2)


@pytest.fixture
def made(tmp_path):
    def make(seed):
        rng, tasks = random.Random(seed), {}
        for task in TASKS:
            lines = []
            for image in range(rng.randint(1, 8)):
                for truth in ("Yes", "No"):
                    said = rng.choice(SAID)
                    lines.append(f"{image}.jpg\tIs it {truth}?\t{truth}\t{said}")
            tasks[task] = lines
            (tmp_path / f"{task}.txt").write_text("\n".join(lines) + "\n")
        return tmp_path, tasks

    return make


def test_the_leaderboard_s_sums_come_out(reference_data, tmp_path):
    found = score_mme(read_mme(reference_data / "released/mme"))
    assert round(found.perception, 3) == 963.611
    assert round(found.cognition, 3) == 249.643
    assert found.missing == ()
    assert MmeScore.load(found.save(tmp_path / "mme")) == found


@pytest.mark.parametrize("seed", range(10))
def test_each_task_is_the_slow_reference_s(made, seed):
    folder, tasks = made(seed)
    found = score_mme(read_mme(folder))
    slow = {task: score_slowly(lines) for task, lines in tasks.items()}
    for task in TASKS:
        assert found.official[task].score == pytest.approx(slow[task])
        one = found.official[task]
        assert one.score == one.accuracy + one.accuracy_plus
    assert found.perception == pytest.approx(sum(slow[t] for t in PERCEPTION))
    assert found.cognition == pytest.approx(sum(slow[t] for t in COGNITION))


def test_the_four_letters_read_what_a_reader_would_not():
    read = {text: read_mme_answer(text) for text in SAID}
    assert read["eyes"] == "yes"
    assert read["know"] == read["not so"] == "no"
    assert read["**Yes**"] == read["Answer: yes"] == read["y"] == "other"
    assert read["no yes"] == "no"
    assert read["yesno"] == "yes"


def test_the_corrected_reading_takes_the_first_word_of_yes_or_no():
    rows = [
        ("a.jpg", True, "**Yes**"),
        ("a.jpg", False, "Answer: no"),
        ("b.jpg", True, "know"),
        ("b.jpg", False, "know"),
    ]
    table = pd.DataFrame(rows, columns=["image", "label", "answer"]).assign(task="OCR")
    found = score_mme(table)
    assert found.official["OCR"].n_other == 2
    assert found.official["OCR"].score == 25.0  # "know" is a no
    assert found.corrected["OCR"].score == 50.0 + 50.0
    assert found.corrected["OCR"].n_other == 2
    assert len(found.missing) == 13


def test_pairs_are_lines_for_the_script_and_images_for_the_corrected_score():
    rows = [
        ("a", True, "Yes"),
        ("b", True, "No"),
        ("a", False, "No"),
        ("b", True, "No"),
    ]
    table = pd.DataFrame(rows, columns=["image", "label", "answer"]).assign(
        task="color"
    )
    found = score_mme(table)
    assert found.official["color"].accuracy_plus == 0
    assert found.corrected["color"].accuracy_plus == 50.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\tIs it?\tYes", r"OCR\.txt:1: expected image, question, truth, answer"),
        ("a.jpg\tIs it?\tmaybe\tYes", r"OCR\.txt:1: expected the truth Yes or No"),
        (
            "a\tq\tYes\tYes\nb\tq\tNo\tNo",
            r"OCR\.txt:1: expected two questions about 'a', .* got 'b' after it",
        ),
        ("a\tq\tYes\tYes\n\n", r"OCR\.txt:1: .* got none after it"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(tmp_path, text, message):
    (tmp_path / "OCR.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_mme(tmp_path)


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected MME's files in .*existence\.txt"):
        read_mme(tmp_path)
    table = pd.DataFrame({"task": ["x"], "image": ["a"], "label": [True]})
    with pytest.raises(InputError, match="need the columns"):
        score_mme(table)
    with pytest.raises(InputError, match="expected tasks of existence"):
        score_mme(table.assign(answer="Yes"))
    with pytest.raises(InputError, match="expected two questions about each image"):
        score_mme(table.assign(answer="Yes", task="OCR"))
