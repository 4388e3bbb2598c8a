"""POPE's files: questions with their labels, answers, and which belongs to which."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pandas as pd

from eah_interp.arguments import (
    by_name,
    check_flag,
    check_kind,
    check_limit,
    check_path,
)
from eah_interp.benchmarks.pope import (
    ANSWER,
    NEITHER,
    PRESENT,
    STRICT,
    Rule,
    is_neither,
    read_first_word,
    read_strictly,
    says_yes,
)
from eah_interp.benchmarks.records import (
    Record,
    check_only,
    fold_spaces,
    is_truth,
    read_answer,
    read_records,
)
from eah_interp.errors import InputError, show_value
from eah_interp.files import save_bytes

URL = "https://github.com/RUCAIBox/POPE"
"""Where the questions of the paper are (folder `output/coco`)."""

_ID, _IMAGE, _PLACE = "question_id", "image", "place"
_SHARED = (_ID, _IMAGE)

_LABEL, _OTHER_IMAGE = "label", "image_id"

_ID_TOO = ("questionId", "questionID", "questionid", "qid", "q_id")
"""Other spellings of `question_id`."""

_NUMBERS = ("id", "idx", "index", "sample_id", "sample_idx")
"""Keys of a number that may be the question's, or that of the object in its file."""


@by_name
def read_pope_questions(
    path: Path | str, *, limit: int | None = None, with_images: bool = False
) -> pd.DataFrame:
    """Read questions and labels in POPE's format.

    Objects `{"question_id": 1, "image": "COCO_val2014_....jpg", "text": "Is there a
    dog in the image?", "label": "yes"}`, as JSON lines or in an array. `question` may
    stand for `text`, and goes before it; `question_id` and `image` may be absent from
    all of them. `eah-interp score` and studies read questions with this.

    Args:
        path: The file.
        limit: Only so many first questions.
        with_images: Whether each has to name the file of its image, as a study needs.

    Returns:
        One row a question: `question_id` and `image` where given, `text`, `label`
        ("yes" or "no") and `place`, its `file:line`.

    Raises:
        InputError: If the file cannot be read, a question has no text or no label
            that is yes or no, or an identifier stands twice.
    """
    limit, path = check_limit("limit", limit), check_path("path", path)
    with_images = check_flag("with_images", with_images)
    try:
        records = read_records(path)[:limit]
    except InputError as error:
        msg = f"{error}; the questions of the paper are at {URL}"
        raise InputError(msg) from error
    for record in records if with_images else ():
        record.text(_IMAGE)
    table = pd.DataFrame(
        {
            "text": [_question(record) for record in records],
            "label": [_label(record) for record in records],
            _PLACE: [record.place for record in records],
        }
    )
    return _with_shared(table, records)


@by_name
def read_pope_answers(path: Path | str) -> pd.DataFrame:
    """Read answers in POPE's format, in LLaVA's, or beside their questions.

    Objects `{"question": "is there a dog in the image?", "answer": "Yes"}` (POPE),
    `{"question_id": 1, "prompt": "...", "text": "Yes"}` (LLaVA) or `{"text": "is there
    a dog in the image?", "response": "Yes"}`, as JSON lines or in an array: the answer
    is under `answer`, `response`, `output`, `prediction`, `pred` or the like, and under
    `text` where there is none of these. What is given beside it is used to find its
    question.

    Args:
        path: The file.

    Returns:
        One row an answer: `answer`, `place`, and of `question_id`, `image`,
        `question`, `label` and `image_id` what is given.

    Raises:
        InputError: If the file cannot be read, an answer is not text, differs from
            another in its object or is the question, an identifier stands twice, or
            answers that nothing ties to a question are numbered out of order.
    """
    records = [_spell_id(one) for one in read_records(check_path("path", path))]
    answers, questions = zip(*map(read_answer, records), strict=True)
    for record, answer in zip(records, answers, strict=True):
        _check_no_other(record, answer)
    places = [record.place for record in records]
    table = pd.DataFrame({"answer": answers, _PLACE: places})
    if _is_given("question", [one is not None for one in questions], table):
        table["question"] = questions
    labels = [str(record.values.get(_LABEL)).strip().lower() for record in records]
    if {*labels} <= {"yes", "no"}:
        table[_LABEL] = labels
    others = [record.values.get(_OTHER_IMAGE) for record in records]
    if all(isinstance(one, str | int) for one in others):
        table[_OTHER_IMAGE] = others
    table = _with_shared(table, records)
    if _ID not in table and "question" not in table:
        _check_numbered(records)
    return table


def _spell_id(record: Record) -> Record:
    """Write the question's identifier as `question_id`, whatever it is called."""
    other = record.key(*_ID_TOO)
    if other is None or _ID in record.values:
        return record
    return Record({**record.values, _ID: record.values[other]}, record.place)


def _check_no_other(record: Record, answer: str) -> None:
    """Check that no key, however it is called, holds the other of yes and no."""
    key = next(k for k, value in record.values.items() if value == answer)
    said = read_strictly(answer)

    def says_other(name: str, text: str) -> bool:
        other = read_first_word(text) if len(text.split()) == 1 else None
        return other not in (None, said) and not is_truth(name)

    check_only(record, key, where=says_other)


def _check_numbered(records: list[Record]) -> None:
    """Check that answers which go by their order are numbered in it.

    Runs on several processes write them out of order, and nothing else would tell.
    """
    key = records[0].key(*_NUMBERS)
    if key is None:
        return
    numbers = [str(record.values.get(key)) for record in records]
    if not all(number.isdecimal() for number in numbers):
        return
    for place, (before, after) in enumerate(pairwise(map(int, numbers)), start=1):
        if after <= before:
            msg = (
                f"{records[place].place}: {key!r} {after} follows {before}: expected "
                "answers in the order of the questions, or with their 'question_id'; "
                f"if {key!r} is that, call it so"
            )
            raise InputError(msg)


@by_name
def match_answers(
    questions: pd.DataFrame, answers: pd.DataFrame, *, rule: Rule = "pope"
) -> pd.DataFrame:
    """Put each answer beside its question, and read it.

    By `question_id` where both tables have one, else in order, as POPE's own script
    does. What else both say of a question has to agree.

    Args:
        questions: As `read_pope_questions` returns them.
        answers: As `read_pope_answers` returns them.
        rule: How an answer is read, see `says_yes`.

    Returns:
        The questions with `answer`, `present` (from the label), `says_yes` and
        `neither`: the table of `score_answers`; and `strictly_yes`, see
        `read_strictly`.

    Raises:
        InputError: If a question has no answer or an answer no question, or an
            answer is to another question than the one it is put beside, or is itself
            that question.

    Example:
        >>> ask = {"text": "Is there a cat?", "label": "no", "place": "q.jsonl:1"}
        >>> say = {"answer": "I see a dog.", "place": "a.jsonl:1"}
        >>> table = match_answers(pd.DataFrame([ask]), pd.DataFrame([say]))
        >>> table[["present", "says_yes", "neither"]].to_dict("records")
        [{'present': False, 'says_yes': True, 'neither': True}]
    """
    _check_table("questions", questions, ("text", "label", _PLACE))
    _check_table("answers", answers, ("answer", _PLACE))
    if _ID in questions and _ID in answers:
        asked, given = questions[_ID].tolist(), answers[_ID].tolist()
        unanswered, unasked = set(asked) - set(given), set(given) - set(asked)
        if unanswered or unasked:
            shown = ", ".join(map(repr, sorted(unanswered or unasked, key=str)[:3]))
            msg = (
                f"expected the answers' question_ids to be the questions', got "
                f"{len(unanswered)} questions without an answer and {len(unasked)} "
                f"answers without a question ({shown}, ...); are they of one split?"
            )
            raise InputError(msg)
        answers = answers.set_index(_ID).loc[asked].reset_index()
    if len(questions) != len(answers):
        msg = (
            f"expected one answer to each of {len(questions)} questions, in order, "
            f"got {len(answers)}; give both files the key 'question_id' to match them "
            "by it"
        )
        raise InputError(msg)
    _check_same(questions, answers)
    texts = answers["answer"].tolist()
    return questions.assign(
        answer=texts,
        **{
            PRESENT: (questions.label == "yes").tolist(),
            ANSWER: [says_yes(text, rule=rule) for text in texts],
            NEITHER: [is_neither(text) for text in texts],
        },
    ).assign(
        **{STRICT: pd.array([read_strictly(text) for text in texts], dtype="boolean")}
    )


def write_pope_questions(questions: pd.DataFrame, path: Path | str) -> None:
    """Write questions as JSON lines in POPE's format.

    Args:
        questions: `question_id`, `image`, `text` and `label`, as
            `build_pope_questions` returns them.
        path: The file, written whole or not at all.

    Raises:
        SettingsError: If it cannot be written.
    """
    table = questions[[_ID, _IMAGE, "text", "label"]]
    lines = [json.dumps(row, ensure_ascii=False) for row in table.to_dict("records")]
    save_bytes(("\n".join(lines) + "\n").encode(), Path(path))


def _check_table(name: str, table: pd.DataFrame, texts: tuple[str, ...]) -> None:
    """Check that a table has its columns, each once, and texts in them."""
    check_kind(name, table, pd.DataFrame, expected="a table of pandas")
    missing = [column for column in texts if column not in table]
    twice = table.columns[table.columns.duplicated()].tolist()
    if missing or twice:
        what = f"lack the columns {missing}" if missing else f"have {twice} twice"
        raise InputError(f"{name} {what}, got {list(table.columns)}")
    for column in (*texts, *(c for c in (_IMAGE, "question") if c in table)):
        odd = [v for v in table[column] if not isinstance(v, str | int)]
        if odd or (column in texts and any(isinstance(v, int) for v in table[column])):
            got = show_value((odd or table[column].tolist())[0])
            raise InputError(f"{name} must have texts in {column!r}, got {got}")
    ids = table[_ID].tolist() if _ID in table else []
    if any(not isinstance(value, str | int) for value in ids):
        msg = f"{name} must have names or numbers in {_ID!r}"
        raise InputError(msg)
    if len(set(ids)) < len(ids):
        raise InputError(f"{name} have a {_ID} twice: expected each once")


def _label(record: Record) -> str:
    label = record.text("label").strip().lower()
    if label not in ("yes", "no"):
        msg = f"{record.place}: expected the label 'yes' or 'no', got {label!r}"
        raise InputError(msg)
    return label


def _question(record: Record) -> str:
    if "question" in record.values:  # `text` beside it may be the answer
        return record.text("question")
    return record.text("text", "question")


def _with_shared(table: pd.DataFrame, records: list[Record]) -> pd.DataFrame:
    for name in _SHARED:
        if _is_given(name, [name in record.values for record in records], table):
            table.insert(0, name, [_name_of(record, name) for record in records])
    if _ID in table:
        twice = [i for i, n in Counter(table[_ID]).items() if n > 1]
        if twice:
            places = table.place[table[_ID] == twice[0]].tolist()
            msg = (
                f"{places[1]}: question_id {twice[0]!r} stands in {places[0]} already; "
                f"expected each once, got {len(twice)} of them repeated"
            )
            raise InputError(msg)
    return table


def _is_given(name: str, given: list[bool], table: pd.DataFrame) -> bool:
    """Return whether every object has a key; refuse one that only some have.

    Without it, what they are matched by would silently be their order.
    """
    if any(given) and not all(given):
        msg = (
            f"{table[_PLACE][given.index(False)]}: expected {name!r} in every object, "
            f"or in none, got it in {sum(given)} of {len(given)}"
        )
        raise InputError(msg)
    return all(given)


def _name_of(record: Record, key: str) -> str | int:
    value = record.values[key]
    if not isinstance(value, str | int):
        got = f"got {json.dumps(value)[:60]}"
        raise InputError(f"{record.place}: expected a name or number as {key!r}, {got}")
    return value


def _check_same(questions: pd.DataFrame, answers: pd.DataFrame) -> None:
    """Check what answers say of their questions; a prompt may say more than those."""
    columns = [(_IMAGE, _IMAGE)] if _IMAGE in questions and _IMAGE in answers else []
    columns += [("text", "question")] if "question" in answers else []
    columns += [(_LABEL, _LABEL)] if _LABEL in answers else []
    for asked, said in columns:
        pairs = zip(questions[asked], answers[said], strict=True)
        for row, (left, right) in enumerate(pairs):
            same = left == right
            if asked == "text":
                same = fold_spaces(left) in fold_spaces(right)
            if not same:
                verb, its = "answers", "is"
                if asked == _LABEL:
                    verb, its = "is labelled", "is labelled"
                msg = (
                    f"{answers.place.iloc[row]} {verb} {right!r}, but the question "
                    f"at its place, {questions.place.iloc[row]}, {its} {left!r}; "
                    "expected the answers in the order of the questions, or with their "
                    "'question_id'"
                )
                raise InputError(msg)
    if _IMAGE in questions and _OTHER_IMAGE in answers:
        _check_partition(questions, answers)
    pairs = zip(questions["text"], answers["answer"], strict=True)
    for row, (left, right) in enumerate(pairs):
        question, answer = fold_spaces(left), fold_spaces(right)
        # A prompt goes on after the question, as in "... Answer in one word.", or in
        # "... Answer yes or no.", which would be read as a no.
        rest = answer.replace(question, " ")
        both = {"yes", "no"} <= set(re.findall(r"\w+", rest))
        if question in answer and (both or is_neither(rest)):
            msg = (
                f"{answers.place.iloc[row]}: expected an answer, got the question, "
                f"{right[:60]!r}; write the model's answer alone, under 'answer'"
            )
            raise InputError(msg)


def _check_partition(questions: pd.DataFrame, answers: pd.DataFrame) -> None:
    """Check that images under another name go together as the questions' images do."""
    known: dict[tuple[str, object], tuple[object, int]] = {}
    pairs = zip(questions[_IMAGE], answers[_OTHER_IMAGE], strict=True)
    for row, (image, other) in enumerate(pairs):
        for key, value in ((("image", image), other), (("image_id", other), image)):
            before, first = known.setdefault(key, (value, row))
            if before != value:
                places = answers.place.iloc[first], answers.place.iloc[row]
                msg = (
                    f"{places[1]}: expected answers in the order of the questions, or "
                    f"with their 'question_id', got image_id {other!r} beside a "
                    f"question about {image!r}, which {places[0]} contradicts"
                )
                raise InputError(msg)
