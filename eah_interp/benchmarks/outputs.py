"""Files of outputs that are to be compared: read, put beside each other, counted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import check_flag, check_path
from eah_interp.benchmarks.chair_files import read_captions, read_ground_truth
from eah_interp.benchmarks.mentions import (
    Lemmatize,
    find_mentions,
    load_lemmatizer,
    load_singularizer,
    read_synonyms,
)
from eah_interp.benchmarks.metrics import count_yes_no
from eah_interp.benchmarks.pope import Rule
from eah_interp.benchmarks.pope_files import (
    match_answers,
    read_pope_answers,
    read_pope_questions,
)
from eah_interp.errors import InputError, SettingsError
from eah_interp.files import name_file
from eah_interp.indices import check_choice
from eah_interp.results import Part
from eah_interp.shown_results import count

Singular: TypeAlias = Literal["nltk", "pattern"]
"""Which of the two ground truths of COCO: how its captions' words are made singular."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OutputFile(Part):
    """A file of captions or answers.

    Attributes:
        name: What it is called in results: its name without its ending.
        path: Where it is.
        sha256: Of its bytes.
        n: Captions or answers in it.
        n_left_out: Those of them that were left out, since another file lacks their
            image or question.
    """

    name: str
    path: str
    sha256: str
    n: int
    n_left_out: int = 0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Outputs(Part):
    """Files of outputs about the same images, scored.

    Attributes:
        task: `"caption"` or `"yes_no"`.
        files: The files, the base first.
        tables: A table for each, row by row about the same image or question: `item`,
            `cluster` (the image), and what metrics count.
        truth: What the outputs were scored with, in words.
        notes: What was left out, and why.
    """

    task: Literal["caption", "yes_no"]
    files: tuple[OutputFile, ...]
    tables: tuple[pd.DataFrame, ...]
    truth: str
    notes: tuple[str, ...]

    @property
    def n(self) -> int:
        """How many outputs of each file there are."""
        return len(self.tables[0])

    @property
    def what(self) -> str:
        """What they are: captions or answers."""
        return "captions" if self.task == "caption" else "answers"

    def _about(self) -> str:
        names = ", ".join(file.name for file in self.files)
        return (
            f"{self.n} {self.what} of each of {count(len(self.files), 'file')} "
            f"({names}), scored with {self.truth}"
        )


def hash_file(path: Path) -> str:
    """Hash a file's bytes (SHA-256).

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def name_files(paths: Sequence[Path]) -> tuple[str, ...]:
    """Name files by their names without endings; by their paths where two share one.

    A file that is named twice is numbered.

    Example:
        >>> name_files([Path("runs/a.jsonl"), Path("b.jsonl")])
        ('a', 'b')
        >>> name_files([Path("x/a.jsonl"), Path("y/a.jsonl")])
        ('x/a.jsonl', 'y/a.jsonl')
    """
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in paths]
    return tuple(
        f"{name} ({number})" if (number := names[: at + 1].count(name)) > 1 else name
        for at, name in enumerate(names)
    )


def _note_files(
    paths: Sequence[Path], sizes: Sequence[int], kept: int
) -> tuple[OutputFile, ...]:
    return tuple(
        OutputFile(
            name=name, path=str(path), sha256=hash_file(path), n=n, n_left_out=n - kept
        )
        for name, path, n in zip(name_files(paths), paths, sizes, strict=True)
    )


def _write_left_out(files: Sequence[OutputFile], what: str) -> tuple[str, ...]:
    return tuple(
        f"{file.name}: {file.n_left_out} of {file.n} left out, whose {what} another "
        "file lacks."
        for file in files
        if file.n_left_out
    )


# ---- Captions.


def read_caption_outputs(
    paths: Sequence[Path],
    *,
    annotations: str | Path,
    synonyms: str | Path,
    singular: Singular = "nltk",
    year: int = 2014,
    common: bool = False,
    image_key: str | None = None,
    caption_key: str | None = None,
    lemmatize: Lemmatize | None = None,
) -> Outputs:
    """Read files of captions of the same images, and find what they name.

    Args:
        paths: The files; the base first.
        annotations: COCO's annotations (a folder), or a file of objects by image.
        synonyms: CHAIR's synonym list.
        singular: Of COCO's annotations, which of the two ground truths.
        year: Of COCO's files.
        common: Whether images that a file lacks are left out of all, and counted.
        image_key: As for `read_captions`.
        caption_key: As for `read_captions`.
        lemmatize: How captions are read; `load_lemmatizer()` when None.

    Returns:
        The captions, scored.

    Raises:
        InputError: If a file cannot be read, holds an image twice, or lacks one that
            another has and `common` is not set; if an image has no ground truth.
        SettingsError: If there is no such ground truth.
        ExtraMissingError: If NLTK, its data, or `pattern` is needed and missing.
    """
    common = check_flag("common", common)
    check_choice("singular", singular, Singular)
    annotations = check_path("annotations", annotations)
    vocabulary = read_synonyms(synonyms)
    given = [
        read_captions(path, image_key=image_key, caption_key=caption_key)
        for path in paths
    ]
    keys = [dict(zip(table.image_id, table.place, strict=True)) for table in given]
    kept = _share(paths, keys, what="image", common=common)
    reader = load_lemmatizer() if lemmatize is None else lemmatize
    of_coco = annotations.is_dir()
    truth = read_ground_truth(
        annotations,
        vocabulary=vocabulary,
        images=kept,
        year=year,
        lemmatize=load_singularizer() if of_coco and singular == "pattern" else reader,
    )
    unknown = [image for image in kept if image not in truth]
    if unknown:
        msg = (
            f"{keys[0][unknown[0]]}: expected ground truth of every captioned image, "
            f"got none of {len(unknown)} of {len(kept)}, such as {unknown[0]!r}, in "
            f"{annotations}; name annotations of the split that the captions are about"
        )
        raise InputError(msg)
    tables = []
    for table in given:
        rows = table.set_index("image_id", drop=False).loc[kept]
        named = find_mentions(
            rows.reset_index(drop=True),
            truth=truth,
            vocabulary=vocabulary,
            lemmatize=reader,
        )
        images = named.image_id.astype(str)
        tables.append(named.assign(item=images, cluster=images, condition=""))
    files = _note_files(paths, [len(table) for table in given], len(kept))
    said = (
        f"COCO's annotations of {year}, words of its captions made singular by "
        f"{singular} (the ground truth {singular!r})"
        if of_coco
        else f"the objects by image that {name_file(str(annotations))} lists "
        f"(SHA-256 {hash_file(annotations)[:12]})"
    )
    return Outputs(
        task="caption",
        files=files,
        tables=tuple(tables),
        truth=said,
        notes=_write_left_out(files, "images"),
    )


def _share(
    paths: Sequence[Path],
    keys: Sequence[dict[Any, str]],
    *,
    what: str,
    common: bool,
) -> list[Any]:
    """List what all files have, in the order of the first.

    Raises:
        InputError: If they have nothing in common, or not the same and `common` is
            not set.
    """
    first = keys[0]
    shared = [key for key in first if all(key in other for other in keys[1:])]
    if not shared:
        msg = (
            f"expected {what}s in common, got none among {len(first)} of {paths[0]} "
            f"({_first(first)}) and {len(keys[-1])} of {paths[-1]} "
            f"({_first(keys[-1])}); are the files about the same {what}s?"
        )
        raise InputError(msg)
    if common:
        return shared
    for path, own in zip(paths[1:], keys[1:], strict=True):
        for side, here, there in ((own, paths[0], path), (first, path, paths[0])):
            other = first if side is own else own
            alone = [key for key in side if key not in other]
            if alone:
                msg = (
                    f"{side[alone[0]]}: {what} {alone[0]!r} is not in {here}: expected "
                    f"the same {what}s in both, got {len(alone)} of {len(side)} that "
                    f"{there} has alone; leave out and count what a file lacks with "
                    "common=True (--common)"
                )
                raise InputError(msg)
    return shared


def _first(keys: dict[Any, str]) -> str:
    return next((f"{key!r} at {place}" for key, place in keys.items()), "none")


# ---- Answers.


def read_answer_outputs(
    paths: Sequence[Path],
    *,
    questions: str | Path,
    rule: Rule = "pope",
    common: bool = False,
) -> Outputs:
    """Read files of answers to the same yes/no questions.

    Args:
        paths: The files; the base first.
        questions: The questions with their labels, as `read_pope_questions` reads them.
        rule: Whose reading of an answer.
        common: Whether questions that a file does not answer are left out of all, and
            counted. Needs a `question_id` in every file.

    Returns:
        The answers, scored.

    Raises:
        InputError: If a file cannot be read, answers a question twice, or does not
            answer one and `common` is not set.
        SettingsError: If there is no such rule.
    """
    common = check_flag("common", common)
    questions = check_path("questions", questions)
    check_choice("rule", rule, Rule)
    asked = read_pope_questions(questions)
    given = [read_pope_answers(path) for path in paths]
    kept = asked
    if common:
        for path, table in zip((questions, *paths), (asked, *given), strict=True):
            if "question_id" not in table:
                msg = (
                    f"{path}: expected the key 'question_id' in every object, which "
                    "common=True (--common) goes by, got objects without it"
                )
                raise InputError(msg)
        keys = [
            dict(zip(table.question_id, table.place, strict=True))
            for table in (asked, *given)
        ]
        ids = _share((questions, *paths), keys, what="question", common=True)
        kept = asked[asked.question_id.isin(ids)].reset_index(drop=True)
    tables = []
    for path, table in zip(paths, given, strict=True):
        own = table[table.question_id.isin(kept.question_id)] if common else table
        try:
            matched = match_answers(kept, own.reset_index(drop=True), rule=rule)
        except InputError as error:
            if str(path) in str(error):
                raise
            raise InputError(f"{path}, answers to {questions}: {error}") from error
        tables.append(_count_answers(matched))
    files = _note_files(paths, [len(table) for table in given], len(kept))
    notes = list(_write_left_out(files, "questions"))
    if len(kept) < len(asked):
        n = len(asked) - len(kept)
        notes.append(f"{n} of {len(asked)} questions are not answered in every file.")
    if "image" not in asked:
        notes.append("Questions name no images: each is taken as one of its own.")
    return Outputs(
        task="yes_no",
        files=files,
        tables=tuple(tables),
        truth=f"the labels of {name_file(str(questions))}, answers read by the rule "
        f"of {rule!r}",
        notes=tuple(notes),
    )


def _count_answers(matched: pd.DataFrame) -> pd.DataFrame:
    numbers = pd.Series(range(len(matched)), index=matched.index).astype(str)
    items = matched.question_id.astype(str) if "question_id" in matched else numbers
    counted = count_yes_no(matched.says_yes, matched.present, matched.neither)
    return counted.assign(
        item=items,
        cluster=matched.image.astype(str) if "image" in matched else items,
        condition="",
        question=matched.text,
        answer=matched.answer,
    )


def check_paths(base: object, patched: object) -> tuple[Path, ...]:
    """Check which files are compared: one, and one or several others.

    Raises:
        SettingsError: If there are no others.
        InputError: If one is no path.
    """
    several = isinstance(patched, list | tuple)
    others = list(patched) if several else [patched]  # type: ignore[call-overload]
    paths = [check_path("base", base), *(check_path("patched", one) for one in others)]
    if len(paths) < 2:
        msg = "patched must be a file, or several, got none: name one to compare with"
        raise SettingsError(msg)
    return tuple(paths)
