"""AMBER: yes/no questions and captions about images whose objects are annotated."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_path
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.mentions import load_lemmatizer
from eah_interp.benchmarks.pope import percent, read_strictly
from eah_interp.benchmarks.records import Record, read_answer, read_records
from eah_interp.benchmarks.scores import VARIANTS, list_variants, plot_variants
from eah_interp.benchmarks.tabulated import tabulate_rates
from eah_interp.errors import InputError, show_value
from eah_interp.foreign_files import read_json, read_text
from eah_interp.results import Part, Result
from eah_interp.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

URL = "https://github.com/junyangwang0410/AMBER"
"""Where its annotations, queries, relations and safe words are (folder `data`)."""

TYPES = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""Types of yes/no items as the annotations write them, and what results call them."""

KINDS = ("all", "existence", "attribute", "state", "number", "action", "relation")
"""Of which questions a result is; attribute is state, number and action together."""

CAPTION_RATES = {"chair": "CHAIR", "cover": "Cover", "hal": "Hal", "cog": "Cog"}
"""Rates of captions, and what AMBER calls them."""

_ATTRIBUTES = ("state", "number", "action")

Similar: TypeAlias = Callable[[str, str], bool]
"""Whether two different nouns mean the same."""

Nouns: TypeAlias = Callable[[str], list[str]]
"""A text to the lemmas of its nouns, in order."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AmberRates(Part):
    """How one kind of yes/no question was answered, in percent; **no** is positive.

    Attributes:
        n: Questions.
        n_neither: Answers that are neither yes nor no by the rule of the variant.
        accuracy: Share answered rightly.
        precision: Share of the "no" answers that are right.
        recall: Share of the questions with the truth no that were answered with it.
        f1: Their harmonic mean.
    """

    n: int
    n_neither: int
    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AmberCaptions(Part):
    """How captions name what is annotated, in percent.

    Attributes:
        n: Captions.
        chair: Share of the nouns counted that are hallucinated.
        cover: Share of the annotated objects that are named.
        hal: Share of the captions with a hallucinated noun.
        cog: Share of the objects that people tend to imagine that are named.
    """

    n: int
    chair: float
    cover: float
    hal: float
    cog: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AmberScore(Result):
    """AMBER by its official script, and with that script's faults corrected.

    Attributes:
        official: Yes/no results by kind, as the official script prints them.
        corrected: The same by a reading that does not need exactly `Yes` or `No`, and
            without its added divisors; NaN where nothing can be said.
        captions: Of captions, as the official script prints them; None without any.
        captions_corrected: The same without its faults.
        score: The published AMBER score, (100 - CHAIR + F1) / 2; None without both.
        n_missing: Annotated items of the types answered that have no answer.
    """

    official: Mapping[str, AmberRates]
    corrected: Mapping[str, AmberRates]
    captions: AmberCaptions | None
    captions_corrected: AmberCaptions | None
    score: float | None
    n_missing: int

    def _about(self) -> str:
        asked = self.official["all"].n if "all" in self.official else 0
        told = 0 if self.captions is None else self.captions.n
        score = "" if self.score is None else f", AMBER score {self.score:.2f}"
        lacking = f", {self.n_missing} items unanswered" if self.n_missing else ""
        return f"{asked} yes/no answers, {told} captions{score}{lacking}"

    def _first(self, k: int) -> pd.DataFrame:
        table = self.frame()
        return table[~table.metric.isin(["n", "n_neither"])].head(k)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The results, in words."""
        rates = {
            "n": "n",
            "accuracy": "accuracy",
            "precision": "precision",
            "recall": "recall",
            "f1": "F1",
            "n_neither": "neither",
        }
        found = []
        if self.official:
            exact = "exactly Yes and No count; no is the positive class; divisors have"
            found = [
                tabulate_rates(
                    "Yes/no, by the official script",
                    self.official,
                    rates,
                    first="questions",
                    notes=f"Percent. As that script does, {exact} 0.001 added.",
                ),
                tabulate_rates(
                    "Yes/no, by the first word of yes or no",
                    self.corrected,
                    rates,
                    first="questions",
                    notes="Percent, nothing added to divisors; no is positive.",
                ),
            ]
        if self.captions is not None:
            both = {"official": self.captions, "corrected": self.captions_corrected}
            found.append(
                tabulate_rates(
                    "Captions",
                    both,
                    {"n": "n"} | CAPTION_RATES,
                    first="variant",
                    notes="Percent. Nouns are the same where they are the same word: "
                    "published numbers compare them by vectors of spaCy too.",
                )
            )
        return tuple(found)

    def frame(self) -> pd.DataFrame:
        """List every number.

        Returns:
            Columns `variant`, `kind` (of question; `captions`), `metric` and `value`.
        """
        both = (self.captions, self.captions_corrected)
        captions = {
            variant: {"captions": told}
            for variant, told in zip(VARIANTS, both, strict=True)
            if told is not None
        }
        return list_variants(self, "kind", more=captions)

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw F1 of each kind of question, and the rates of captions, both variants.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        values: dict[str, dict[str, float]] = {}
        both = (self.captions, self.captions_corrected)
        for variant, told in zip(VARIANTS, both, strict=True):
            rates = getattr(self, variant)
            values[variant] = {f"F1, {kind}": one.f1 for kind, one in rates.items()}
            if told is not None:
                values[variant] |= {
                    shown: getattr(told, name) for name, shown in CAPTION_RATES.items()
                }
        return plot_variants(values, title="AMBER", ax=ax)


# ---- Its files.


def read_amber_annotations(path: Path | str) -> pd.DataFrame:
    """Read AMBER's annotations.

    Args:
        path: `annotations.json`; not part of this package.

    Returns:
        One row an item: `id`, `type` (`generative`, or as in `TYPES`), `label` (the
        truth of a yes/no item: True for yes), `truth` and `hallu` (lists of objects
        there, and of objects that people tend to imagine, of a generative item).

    Raises:
        InputError: If it cannot be read, or an entry is not as expected, or an id
            stands twice.
    """
    rows: list[dict[str, Any]] = []
    places: dict[int, str] = {}
    for record in _read_list(path):
        number, kind = _number(record, "id"), record.text("type")
        if kind != "generative" and kind not in TYPES:
            known = ", ".join(["generative", *TYPES])
            msg = f"{record.place}: expected a type of {known}, got {kind!r}"
            raise InputError(msg)
        _take_once(places, number, record.place)
        is_told = kind == "generative"
        label = None
        if not is_told:
            label = record.text("truth").strip().lower()
            if label not in ("yes", "no"):
                msg = f"{record.place}: expected the truth yes or no, got {label!r}"
                raise InputError(msg)
        rows.append(
            {
                "id": number,
                "type": kind,
                "label": None if label is None else label == "yes",
                "truth": _words(record, "truth") if is_told else [],
                "hallu": _words(record, "hallu") if is_told else [],
            }
        )
    return pd.DataFrame(rows)


def read_amber_answers(path: Path | str) -> pd.DataFrame:
    """Read what a model answered: `{"id": 1005, "response": "Yes"}` each.

    Args:
        path: A JSON array, as the official script reads it, or JSON lines. `answer`,
            `text` and the like do for `response`.

    Returns:
        One row an answer: `id`, `answer` and `place`, its `file:line`.

    Raises:
        InputError: If it cannot be read, an answer is missing or no text, or an id
            stands twice.
    """
    rows: list[dict[str, Any]] = []
    places: dict[int, str] = {}
    for record in read_records(check_path("path", path)):
        number = _number(record, "id")
        _take_once(places, number, record.place)
        answer = read_answer(record, "response")[0]
        rows.append({"id": number, "answer": answer, "place": record.place})
    return pd.DataFrame(rows)


def read_amber_queries(path: Path | str) -> pd.DataFrame:
    """Read what a model is asked: `{"id": 1, "image": "AMBER_1.jpg", "query": "..."}`.

    Args:
        path: `query_all.json` or one of its parts.

    Returns:
        One row a query: `id`, `image`, `query` and `place`.

    Raises:
        InputError: If it cannot be read, a key is missing, or an id stands twice.
    """
    rows: list[dict[str, Any]] = []
    places: dict[int, str] = {}
    for record in _read_list(path):
        number = _number(record, "id")
        _take_once(places, number, record.place)
        image, query = record.text("image"), record.text("query")
        rows.append(
            {"id": number, "image": image, "query": query, "place": record.place}
        )
    return pd.DataFrame(rows)


def read_amber_words(
    relations: Path | str, safe_words: Path | str
) -> tuple[dict[str, list[str]], frozenset[str]]:
    """Read which words go with which object, and which are always safe.

    Args:
        relations: `relation.json`.
        safe_words: `safe_words.txt`.

    Returns:
        Each object to its words, and the safe words.

    Raises:
        InputError: If one cannot be read, or is not as expected.
    """
    relations = check_path("relations", relations)
    found = read_json(relations)
    right = isinstance(found, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words)
        for words in found.values()
    )
    if not right:
        msg = f"{relations}: expected an object of words with lists of words; see {URL}"
        raise InputError(msg)
    lines = read_text(check_path("safe_words", safe_words)).split("\n")
    return dict(found), frozenset(lines)


def _read_list(path: Path | str) -> list[Record]:
    try:
        return read_records(check_path("path", path))
    except InputError as error:
        raise InputError(f"{error}; AMBER's files are at {URL}") from error


def _number(record: Record, key: str) -> int:
    value = record.values.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        got = show_value(value) if key in record.values else "none"
        msg = f"{record.place}: expected a whole number under {key!r}, got {got}"
        raise InputError(msg)
    return value


def _take_once(places: dict[int, str], number: int, place: str) -> None:
    if number in places:
        msg = f"{place}: id {number} stands in {places[number]} already; expected one"
        raise InputError(f"{msg} each")
    places[number] = place


def _words(record: Record, key: str) -> list[str]:
    value = record.values.get(key)
    if not isinstance(value, list) or not all(isinstance(w, str) for w in value):
        got = json.dumps(value)[:60]
        msg = f"{record.place}: expected a list of words under {key!r}, got {got}"
        raise InputError(msg)
    return value


# ---- Its scores.


@by_name
def score_amber(
    answers: pd.DataFrame,
    *,
    annotations: pd.DataFrame,
    relations: Mapping[str, Sequence[str]] | None = None,
    safe_words: "frozenset[str]" = frozenset(),
    similar: Similar | None = None,
    nouns: Nouns | None = None,
) -> AmberScore:
    """Score answers and captions as AMBER does.

    Source: Wang et al., "AMBER", 2023 (arXiv:2311.07397), and its `inference.py`. What
    the official script does that a reader would not expect, each kept in `official`:

    - An answer counts only if it is exactly `Yes` or `No`: `yes`, `Yes.` and `No, ...`
      are wrong, and no "no" answers either. `corrected` takes the first word of yes
      or no (`read_strictly`).
    - The positive class of precision and recall is **no**.
    - Every divisor begins at 0.001, and F1 adds 0.0001 (0.001 for existence) to its
      own; F1 is made of precision and recall that are rounded already. `corrected`
      does neither.
    - Of captions it keeps a noun only if it is an object or one of an object's words.
      All kept nouns are the divisor of CHAIR, safe words included.
    - A noun covers the first object whose words have it, in the order of the
      annotation, before the object that it names: with "wall" and "building" there,
      and building a word of wall, "building" covers the wall alone. `corrected`
      covers every object that is meant.
    - A safe word covers nothing, also where it is an annotated object. `corrected`
      lets it.
    - The same for what people tend to imagine (Cog), where a noun marks the first
      that is meant, also if it is meant by an object that is there.

    It compares nouns by vectors of spaCy's `en_core_web_lg` (a similarity above 0.8).
    Here two nouns are the same where they are the same word, and where `similar` says
    so: without the vectors, numbers differ from the published ones.

    Args:
        answers: `id` and `answer`, as `read_amber_answers` returns them.
        annotations: As `read_amber_annotations` returns them.
        relations: Words by object, for captions, as `read_amber_words` returns them.
        safe_words: Words that are never hallucinated.
        similar: Whether two different nouns mean the same; never when None.
        nouns: A caption to its nouns' lemmas; NLTK's tags and lemmas when None, as the
            official script finds them: words keep their case.

    Returns:
        The score.

    Raises:
        InputError: If a table lacks a column, an answer has no annotation, or there are
            captions and no relations, or an object that they lack.
        ExtraMissingError: If there are captions, and NLTK or its data is missing.
    """
    check_table("answers", answers, unique="id", id="key", answer="text")
    check_table(
        "annotations",
        annotations,
        unique="id",
        id="key",
        type="text",
        label="flag or none",
        truth="names",
        hallu="names",
    )
    wrong = sorted(set(annotations.type) - {"generative", *TYPES})
    if wrong:
        msg = f"annotations must have types of {', '.join(['generative', *TYPES])}, got"
        raise InputError(f"{msg} {wrong[0]!r}")
    unlabelled = annotations[
        annotations.type.ne("generative") & annotations.label.isna()
    ]
    if len(unlabelled):
        number = show_value(unlabelled.id.iloc[0])
        msg = f"annotations have no label for the yes/no item {number}: expected one"
        raise InputError(msg)
    known = annotations.set_index("id")
    strange = [one for one in answers.id if one not in known.index]
    if strange:
        msg = (
            f"expected answers to annotated items, got {len(strange)} of "
            f"{len(answers)} without one, such as id {strange[0]}; are the "
            "annotations of the same release?"
        )
        raise InputError(msg)
    own = answers[["id", "answer"]].join(known, on="id")
    asked, told = own[own.type != "generative"], own[own.type == "generative"]
    same_types = annotations[annotations.type.isin(set(own.type))]
    both = _score_captions(told, relations, safe_words, similar, nouns)
    official = _rate_kinds(asked, official=True)
    score = None
    if both is not None and "all" in official:
        score = (100 - both[0].chair + official["all"].f1) / 2
    return AmberScore(
        official=official,
        corrected=_rate_kinds(asked, official=False),
        captions=None if both is None else both[0],
        captions_corrected=None if both is None else both[1],
        score=score,
        n_missing=len(same_types) - len(own),
    )


def _rate_kinds(asked: pd.DataFrame, *, official: bool) -> dict[str, AmberRates]:
    found = {}
    kinds = asked.type.map(TYPES)
    for kind in KINDS if len(asked) else ():
        wanted = {"all": set(TYPES.values()), "attribute": set(_ATTRIBUTES)}
        own = asked[kinds.isin(wanted.get(kind, {kind}))]
        if len(own):
            found[kind] = _rate(own, kind, official=official)
    return found


def _rate(own: pd.DataFrame, kind: str, *, official: bool) -> AmberRates:
    exact = {"Yes": True, "No": False}
    read = [exact.get(a) if official else read_strictly(a) for a in own.answer]
    pairs = list(zip(read, own.label.astype(bool), strict=True))
    n_right = sum(given is truth for given, truth in _plain(pairs))
    n_no = sum(given is False for given, _ in pairs)
    n_truth = sum(not truth for _, truth in pairs)
    n_hit = sum(given is False and not truth for given, truth in pairs)
    n_neither = sum(given is None for given, _ in pairs)
    if official:
        # The script pools attributes from three divisors, each of which begins so.
        extra = 0.003 if kind == "attribute" else 0.001
        accuracy, precision, recall = (
            round(count / (total + extra) * 100, 1)
            for count, total in ((n_right, len(own)), (n_hit, n_no), (n_hit, n_truth))
        )
        p, r = precision / 100, recall / 100
        more = 0.001 if kind == "existence" else 0.0001
        f1 = round(2 * p * r / (p + r + more) * 100, 1)
    else:
        accuracy, precision = percent(n_right, len(own)), percent(n_hit, n_no)
        recall, f1 = percent(n_hit, n_truth), percent(2 * n_hit, n_no + n_truth)
    return AmberRates(
        n=len(own),
        n_neither=n_neither,
        accuracy=accuracy,
        precision=precision,
        recall=recall,
        f1=f1,
    )


def _plain(pairs: Sequence[tuple[bool | None, Any]]) -> list[tuple[bool | None, bool]]:
    return [(given, bool(truth)) for given, truth in pairs]


def load_nouns() -> Nouns:
    """Load what finds the nouns of a caption as AMBER's script does, from NLTK.

    Words keep their case: tagged by the averaged perceptron, those whose tag begins
    with NN are put through WordNet as nouns. "Dogs" at a sentence's head stays "Dogs",
    which is no object of AMBER's.

    Raises:
        ExtraMissingError: If NLTK, or its data, is not installed.
    """
    reader = load_lemmatizer()
    return reader.nouns


def _score_captions(
    told: pd.DataFrame,
    relations: Mapping[str, Sequence[str]] | None,
    safe_words: "frozenset[str]",
    similar: Similar | None,
    nouns: Nouns | None,
) -> tuple[AmberCaptions, AmberCaptions] | None:
    if told.empty:
        return None
    if relations is None:
        msg = (
            f"{len(told)} answers are captions: expected relations, AMBER's "
            f"relation.json, got none; it is at {URL}, or leave captions out"
        )
        raise InputError(msg)
    lacking = [
        word
        for objects in (*told.truth, *told.hallu)
        for word in objects
        if word not in relations
    ]
    if lacking:
        msg = f"relations lack the annotated object {lacking[0]!r}: are both files of"
        raise InputError(f"{msg} one release?")
    find = load_nouns() if nouns is None else nouns
    words = {*relations, *(word for several in relations.values() for word in several)}
    counts: list[dict[str, Any]] = []
    for row in told.itertuples():
        kept = [noun for noun in find(str(row.answer)) if noun in words]
        counts.append(
            _read_caption(kept, row.truth, row.hallu, relations, safe_words, similar)  # type: ignore[arg-type]
        )
    totals = pd.DataFrame(counts).sum()
    return _sum_captions(totals, len(told), official=True), _sum_captions(
        totals, len(told), official=False
    )


def _read_caption(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    relations: Mapping[str, Sequence[str]],
    safe_words: "frozenset[str]",
    similar: Similar | None,
) -> dict[str, int]:
    """Count what a caption's nouns mean, by both variants."""
    there, imagined = _Objects(truth, relations), _Objects(hallu, relations)
    n_hallucinated = 0
    for noun in nouns:
        if noun in safe_words:
            there.mark_every(noun)
            continue
        if noun in there.words:
            there.mark(noun)
            continue
        imagined.mark(noun)
        imagined.mark_like(noun, similar)
        if not there.mark_like(noun, similar):
            n_hallucinated += 1
    return {
        "n_nouns": len(nouns),
        "n_hallucinated": n_hallucinated,
        "hallucinates": int(n_hallucinated > 0),
        "n_covered": len(there.first),
        "n_covered_all": len(there.every),
        "n_truth": len(truth),
        "n_imagined": len(imagined.first),
        "n_imagined_all": len(imagined.every),
        "n_hallu": len(hallu),
    }


class _Objects:
    """Annotated objects with their words, and which of them are meant."""

    def __init__(
        self, objects: Sequence[str], relations: Mapping[str, Sequence[str]]
    ) -> None:
        # In the script's order: all objects' words first, then the objects.
        self._meaning = [
            (word, at) for at, name in enumerate(objects) for word in relations[name]
        ] + [(name, at) for at, name in enumerate(objects)]
        self.words = {word for word, _ in self._meaning}
        self.first: set[int] = set()
        self.every: set[int] = set()

    def mark(self, noun: str) -> bool:
        """Mark the objects that a noun means as a word; whether there is one."""
        meant = [at for word, at in self._meaning if word == noun]
        return self._mark(meant)

    def mark_every(self, noun: str) -> None:
        """Mark the objects that a safe word means, which the script never does."""
        self.every.update(at for word, at in self._meaning if word == noun)

    def mark_like(self, noun: str, similar: Similar | None) -> bool:
        """Mark the objects that a noun means as the same word or a similar one."""
        meant = [
            at
            for word, at in self._meaning
            if word == noun or (similar is not None and bool(similar(noun, word)))
        ]
        return self._mark(meant)

    def _mark(self, meant: Sequence[int]) -> bool:
        self.first.update(meant[:1])
        self.every.update(meant)
        return bool(meant)


def _sum_captions(totals: pd.Series, n: int, *, official: bool) -> AmberCaptions:
    suffix = "" if official else "_all"
    rates = (
        (totals.n_hallucinated, totals.n_nouns),
        (totals[f"n_covered{suffix}"], totals.n_truth),
        (totals[f"n_imagined{suffix}"], totals.n_hallu),
    )
    if official:
        chair, cover, cog = (
            round(int(count) / (int(total) + 0.001) * 100, 1) for count, total in rates
        )
        hal = round(100 - (n - int(totals.hallucinates)) / (n + 0.001) * 100, 1)
    else:
        chair, cover, cog = (percent(int(count), int(total)) for count, total in rates)
        hal = percent(int(totals.hallucinates), n)
    return AmberCaptions(n=n, chair=chair, cover=cover, hal=hal, cog=cog)
