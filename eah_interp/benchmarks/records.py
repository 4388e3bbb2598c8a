"""Files of JSON objects: JSON lines, an array, or objects one after the other.

Releases use all three under the same suffix. Whatever is wrong is said with its line.
"""

import bisect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eah_interp.errors import InputError
from eah_interp.foreign_files import JsonText, read_text


@dataclass(frozen=True)
class Record:
    """One object of a file.

    Attributes:
        values: Its keys and values.
        place: Where it begins, as `file:line`.
    """

    values: Mapping[str, Any]
    place: str

    def key(self, *names: str) -> str | None:
        """Return the first of some keys that it has; None where it has none."""
        return next((name for name in names if name in self.values), None)

    def text(self, *names: str) -> str:
        """Return the text under the first of some keys that it has.

        Raises:
            InputError: If it has none of them, or holds something else there.

        Example:
            >>> Record({"text": "Yes"}, "answers.jsonl:1").text("answer", "text")
            'Yes'
        """
        name = self.key(*names)
        if name is None:
            expected = " or ".join(map(repr, names))
            msg = f"{self.place}: expected the key {expected}, got {list(self.values)}"
            raise InputError(msg)
        value = self.values[name]
        if not isinstance(value, str):
            got = f"got {json.dumps(value)[:60]}"
            raise InputError(f"{self.place}: expected text under {name!r}, {got}")
        return value


ANSWERS = (
    *("answer", "response", "output", "prediction", "pred", "model_answer"),
    *("model_response", "model_output", "predicted_answer", "pred_answer"),
    *("generated_text", "generated", "generation", "completion", "reply", "outputs"),
)
"""Keys under which files hold what a model said, beside a question or a prompt."""

QUESTIONS = ("question", "prompt", "query", "instruction")
"""Keys under which they hold what it was asked."""

_SAID = re.compile(
    "answer|response|reply|replies|caption|description|completion|output|generat|pred"
)
"""What stands in keys of what a model said, whatever else they say."""

_TRUE = "gt gold golden truth true correct right label labels ref reference target"
_BESIDE = "id ids type kind file path name time date at seconds tokens length score"
_NOT_SAID = {
    *_TRUE.split(),
    *_BESIDE.split(),
    "groundtruth",
    "expected",
    "prompt",
    "config",
}
"""Words of keys of something else: `gt_answer`, `answer_id`, `output_file`."""


def read_answer(record: Record, *names: str) -> tuple[str, str | None]:
    """Read what a model said, and what it was asked, from one object.

    `text` is the answer where nothing else is, and the question beside an answer.

    Args:
        record: The object.
        *names: Keys of the answer, beside `ANSWERS` and `text`.

    Returns:
        The answer; the question, where it is given.

    Raises:
        InputError: If there is no answer, one that is no text, two that differ (under
            whatever keys a model's answers may stand), or one that is the question.
    """
    asked = record.key(*QUESTIONS)
    question = None if asked is None else record.text(asked)
    keys = dict.fromkeys((*names, *ANSWERS))
    found = {key: record.text(key) for key in keys if key in record.values}
    if not found:
        found = {"text": record.text(*(names or ("answer",)), "text")}
    elif "text" in record.values:
        text = record.text("text")
        if question is None:
            question = text
        elif fold_spaces(question) not in fold_spaces(text):
            found["text"] = text
    if len({answer.strip() for answer in found.values()}) > 1:
        shown = " and ".join(f"{key!r} {text[:40]!r}" for key, text in found.items())
        msg = (
            f"{record.place}: expected one answer, got several that differ: {shown}; "
            "leave the model's (is another the label?)"
        )
        raise InputError(msg)
    key, answer = next(iter(found.items()))
    check_only(record, key, where=lambda name, _: name not in found and _is_said(name))
    if question is not None and fold_spaces(answer) == fold_spaces(question):
        msg = (
            f"{record.place}: expected an answer under {key!r}, got the question, "
            f"{answer[:60]!r}; write the model's under 'answer'"
        )
        raise InputError(msg)
    return answer, question


def is_truth(name: str) -> bool:
    """Tell whether a key is one of what is right, and not of what a model said.

    Example:
        >>> [is_truth(name) for name in ("label", "gtAnswer", "gold_label", "Response")]
        [True, True, True, False]
    """
    return not _words(name).isdisjoint({*_TRUE.split(), "groundtruth", "expected"})


def check_only(record: Record, key: str, *, where: Callable[[str, str], bool]) -> None:
    """Check that no other text of an object may be the answer, and says otherwise.

    Args:
        record: The object.
        key: Where the answer stands.
        where: Whether a key and its text may be an answer.

    Raises:
        InputError: If one is.
    """
    answer = record.values[key].strip()
    for name, text in record.values.items():
        if name in (key, *QUESTIONS, "text") or not isinstance(text, str):
            continue
        if text.strip() != answer and where(name, text):
            msg = (
                f"{record.place}: expected one answer, got several that differ: "
                f"{key!r} {answer[:40]!r} and {name!r} {text[:40]!r}; leave the "
                "model's (is another the label?)"
            )
            raise InputError(msg)


def _is_said(name: str) -> bool:
    said = _SAID.search(name.lower()) is not None
    by_whom = name.lower().endswith("model")
    return said and not by_whom and _words(name).isdisjoint(_NOT_SAID)


def _words(name: str) -> set[str]:
    """List the words of a key: `gt_answer`, `gtAnswer` and `gt-answer` have two."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return set(re.findall("[a-z]+", parted.lower()))


def fold_spaces(text: str) -> str:
    """Return a text in lower case, with single spaces, to compare it.

    Example:
        >>> fold_spaces("Is there  a Cat? ")
        'is there a cat?'
    """
    return " ".join(text.lower().split())


def read_records(path: Path | str) -> list[Record]:
    """Read the objects of a file.

    Args:
        path: JSON lines, one array of objects, or objects that follow each other.

    Returns:
        The objects, in the file's order, each with the line where it begins.

    Raises:
        InputError: If the file cannot be read, is not JSON, has a key twice in an
            object, holds something other than objects, or nothing.
    """
    path = Path(path)
    text = JsonText(read_text(path), path)
    lines = [place for place, sign in enumerate(text.text) if sign == "\n"]
    records = []
    for start, value in _values(text):
        place = f"{path}:{bisect.bisect_left(lines, start) + 1}"
        if not isinstance(value, dict):
            got = json.dumps(value)[:60]
            raise InputError(f"{place}: expected a JSON object {{...}}, got {got}")
        records.append(Record(value, place))
    if not records:
        raise InputError(f"{path}: expected JSON objects, got an empty file")
    return records


def _values(text: JsonText) -> Iterator[tuple[int, Any]]:
    """Yield where each value starts, and the value."""
    whole = text.text
    try:
        place = text.skip_blanks(0)
        closing = whole[place : place + 1] == "["
        place = text.skip_blanks(place + closing)
        while place < len(whole) and not (closing and whole[place] == "]"):
            value, end = text.read(place)
            yield place, value
            place = text.skip_blanks(end)
            if closing:
                place = _next_item(text, place)
        if closing and text.skip_blanks(place + 1) < len(whole):
            text.refuse(place + 1, "not JSON: Extra data")
        if closing and place >= len(whole):
            text.refuse(place, "not JSON: The array does not end")
    except InputError as error:
        if ": not JSON: " not in str(error):
            raise
        raise InputError(f"{error}; was the file cut off?") from error


def _next_item(text: JsonText, place: int) -> int:
    sign = text.text[place : place + 1]
    if sign == ",":
        return text.skip_blanks(place + 1)
    if sign not in ("]", ""):
        text.refuse(place, "not JSON: Expecting ',' delimiter")
    return place
