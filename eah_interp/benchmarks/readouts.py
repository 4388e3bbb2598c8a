"""How a yes/no answer is read, by rule and by token, and how far F1 goes with it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.arguments import by_name, check_kind
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.pope import (
    ANSWER,
    PRESENT,
    PopeScore,
    is_neither,
    read_first_word,
    read_strictly,
    says_yes,
    score_answers,
)
from eah_interp.benchmarks.tabulated import write_rate
from eah_interp.errors import InputError, NumericalError, show_value
from eah_interp.indices import check_integer, to_list
from eah_interp.results import ModelResult, Part, Result
from eah_interp.shown_results import count
from eah_interp.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.interventions import Intervention

READINGS = ("pope", "opera", "first word", "strict")
"""Readings of text: the official rule, OPERA's, the first word alone if it is one of
yes or no, and the first such word wherever it stands."""

_COLUMNS = ("F1", "accuracy", "yes-ratio", "neither", "mass")

_BLANKS = ("\u2581", "\u0120", " ")
"""How tokenizers write a leading space: SentencePiece, byte-level BPE, plainly."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class YesNoToken(Part):
    """A token that is a yes or a no.

    Attributes:
        id: Its number.
        token: How the tokenizer writes it.
        word: What it says, as it is spelled.
        spaced: Whether it begins with a space.
    """

    id: int
    token: str
    word: str
    spaced: bool

    @property
    def is_yes(self) -> bool:
        """Whether it says yes."""
        return self.word.casefold() == "yes"

    def __str__(self) -> str:
        return repr(f"{' ' if self.spaced else ''}{self.word}")


@dataclass(frozen=True, eq=False, repr=False)
class NextTokens(ModelResult):
    """What a model is ready to say first to each question.

    Attributes:
        tokens: The tokens of yes and of no.
        probabilities: Of each of them, out of the whole vocabulary.
        likeliest: The likeliest token of each question, of the whole vocabulary.
        patch: What patched the model; None where nothing is known to have.
    """

    tokens: tuple[YesNoToken, ...]
    probabilities: Float[Tensor, "question token"]
    likeliest: Int[Tensor, " question"]
    patch: "Intervention | None" = None

    def _about(self) -> str:
        listed = ", ".join(map(str, self.tokens))
        return f"{count(len(self.likeliest), 'question')}, tokens {listed}"

    def _settings(self) -> Mapping[str, Any]:
        return {} if self.patch is None else {"patch": self.patch}

    def frame(self) -> pd.DataFrame:
        """List every probability.

        Returns:
            One row for each question and token: `question` (from 0), `id`, `token`,
            `word`, `spaced`, `probability`, and `likeliest`, whether no other token is
            likelier.
        """
        n_rows, n_tokens = self.probabilities.shape
        listed = pd.DataFrame(
            {
                "id": [token.id for token in self.tokens],
                "token": [token.token for token in self.tokens],
                "word": [token.word for token in self.tokens],
                "spaced": [token.spaced for token in self.tokens],
            }
        )
        questions = torch.arange(n_rows).repeat_interleave(n_tokens)
        table = listed.iloc[torch.arange(n_tokens).repeat(n_rows).numpy()]
        table = table.reset_index(drop=True)
        table.insert(0, "question", questions.numpy())
        first = self.likeliest.repeat_interleave(n_tokens).numpy()
        return table.assign(
            probability=self.probabilities.flatten().numpy(),
            likeliest=table.id.to_numpy() == first,
        )

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the mean probability of each token, over the questions.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        means = (100 * self.probabilities.mean(0)).tolist()
        return plot_bars(
            [str(token) for token in self.tokens],
            {"plain" if self.patch is None else "patched": means},
            title=f"first token of {count(len(self.likeliest), 'answer')}",
            axis="mean probability (percent)",
            ax=ax,
        )

    @classmethod
    def of(
        cls, logits: Float[Tensor, "question vocab"], tokenizer: Any
    ) -> "NextTokens":
        """Take them from the logits of the token that comes next.

        Args:
            logits: A row a question.
            tokenizer: The model's.

        Raises:
            InputError: If the tokenizer has no token of yes or of no, or has more
                tokens than there are logits.
            NumericalError: If a logit is NaN.
        """
        tokens = find_yes_no_tokens(tokenizer)
        if max(token.id for token in tokens) >= logits.shape[-1]:
            msg = (
                f"expected a logit for each token, got {logits.shape[-1]} logits and "
                f"the token {tokens[-1].id}; is the tokenizer this model's?"
            )
            raise InputError(msg)
        if bool(logits.isnan().any()):
            msg = "logits hold NaN: expected numbers; run the model in float32"
            raise NumericalError(msg)
        shares = logits.float().softmax(-1)
        ids = [token.id for token in tokens]
        return cls(tokens, shares[:, ids].cpu(), logits.argmax(-1).cpu())


def find_yes_no_tokens(tokenizer: Any) -> tuple[YesNoToken, ...]:
    """Find every token of a tokenizer that says yes or no, whatever its case and space.

    Args:
        tokenizer: A model's.

    Returns:
        The tokens, by number.

    Raises:
        InputError: If it has none that says yes, or none that says no.

    Example:
        >>> import eah_interp as eah
        >>> [str(token) for token in find_yes_no_tokens(eah.load().tokenizer)]
        ["' Yes'", "'Yes'", "' No'", "'No'"]
    """
    found = []
    for text, number in tokenizer.get_vocab().items():
        spaced = text.startswith(_BLANKS)
        word = text[1:] if spaced else text
        if word.casefold() in ("yes", "no"):
            found.append(
                YesNoToken(id=int(number), token=text, word=word, spaced=spaced)
            )
    lacking = [w for w in ("yes", "no") if w not in {t.word.casefold() for t in found}]
    if lacking:
        msg = (
            f"the tokenizer has no token that says {' or '.join(lacking)}: expected "
            "one, with or without a space before it; read the answers as text"
        )
        raise InputError(msg)
    return tuple(sorted(found, key=lambda token: token.id))


@by_name
def read_next_tokens(
    model: Any,
    images: Sequence[Any],
    prompts: Sequence[Any],
    *,
    patch: "Intervention | None" = None,
    batch_size: int = 8,
) -> NextTokens:
    """Run a model on questions, and read what it is ready to say first.

    Args:
        model: An LVLM.
        images: One for each question.
        prompts: The questions, as the model gets them.
        patch: An intervention; none when None.
        batch_size: Questions in a forward pass.

    Returns:
        Probabilities of the tokens of yes and no.

    Raises:
        InputError: If there are not as many images as prompts, or none, or the
            tokenizer has no token of yes or of no.
        SettingsError: If the batch size is no integer of 1 or more.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene
        >>> found = read_next_tokens(
        ...     eah.load(), [draw_scene(0).pil()], ["Is there a cup in the image?"]
        ... )
        >>> len(found.tokens), found.probabilities.shape
        (4, torch.Size([1, 4]))
    """
    # Here, since scoring what is in files needs no model: imports take seconds.
    from eah_interp.attribution.readouts import keep_logits
    from eah_interp.interventions import intervene
    from eah_interp.lvlm.anatomy import name_model

    size = check_integer("batch_size", batch_size, least=1)
    pictures, texts = to_list(images), to_list(prompts)
    if not pictures or texts is None or len(pictures) != len(texts):
        n_prompts = "none" if texts is None else len(texts)
        msg = (
            "expected a list of images and as many prompts, got "
            f"{len(pictures or ())} and {n_prompts}"
        )
        raise InputError(msg)
    parts = []
    for start in range(0, len(pictures), size):
        encoding = model.encode(
            [[one] for one in pictures[start : start + size]],
            texts[start : start + size],
        )
        last = torch.tensor([encoding["input_ids"].shape[1] - 1])
        keep, _ = keep_logits(model, last)
        with torch.no_grad(), model.trace(**encoding, **keep):
            if patch is not None:
                intervene(model, patch)
            logits = model.output.logits[:, -1].float().save()
        parts.append(NextTokens.of(logits, model.tokenizer))
    return NextTokens(
        parts[0].tokens,
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.likeliest for part in parts]),
        patch=patch,
        model=name_model(model),
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReadoutScore(Part):
    """One way of reading answers, and what they score by it.

    Attributes:
        name: What it is called.
        source: Whether it reads text or logits.
        score: The score.
        mass: Of logits, the mean probability that its tokens catch; None of text.
    """

    name: str
    source: Literal["text", "logits"]
    score: PopeScore
    mass: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReadoutAudit(Result):
    """The same answers by every way of reading them.

    Attributes:
        readouts: The ways.
        tokens: Tokens of yes and no that were found; empty without logits.
    """

    readouts: tuple[ReadoutScore, ...]
    tokens: tuple[YesNoToken, ...] = ()

    def _about(self) -> str:
        n = self.readouts[0].score.n if self.readouts else 0
        return (
            f"{count(n, 'answer')} by {count(len(self.readouts), 'reading')}, "
            f"F1 spread over {self.spread:.2f} points"
        )

    @property
    def spread(self) -> float:
        """How far F1 goes from the lowest reading to the highest, in points."""
        values = [one.score.f1 for one in self.readouts if one.score.f1 == one.score.f1]
        return max(values) - min(values) if values else float("nan")

    def find(self, name: str) -> ReadoutScore:
        """Find a readout by its name.

        Raises:
            InputError: If there is none.
        """
        for one in self.readouts:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.readouts)
        raise InputError(f"expected a readout of {known}, got {show_value(name)}")

    def frame(self) -> pd.DataFrame:
        """List the readouts: `name`, `source`, `mass` and all of the score."""
        numbers = [field.name for field in dataclasses.fields(PopeScore)]
        table = pd.DataFrame(
            [
                {"name": one.name, "source": one.source, "mass": one.mass}
                | vars(one.score)
                for one in self.readouts
            ],
            columns=["name", "source", "mass", *numbers],
        )
        return table.astype({"mass": "float64"})

    def _first(self, k: int) -> pd.DataFrame:
        columns = ["name", "source", "f1", "accuracy", "yes_ratio", "n_neither", "mass"]
        return self.frame()[columns].head(k)

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw F1 by each reading.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        names = [one.name for one in self.readouts]
        values = [one.score.f1 for one in self.readouts]
        title = "F1 by how the answer is read"
        return plot_bars(names, {"plain": values}, title=title, axis="percent", ax=ax)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The readouts, in words."""
        notes = f"Percent. From the lowest F1 to the highest: {self.spread:.2f} points."
        if self.tokens:
            listed = ", ".join(f"{token} ({token.id})" for token in self.tokens)
            notes += f" Tokens of yes and no: {listed}."
        return (
            Table(
                caption="F1 by how the answer is read",
                header=("reading", "of", *_COLUMNS),
                rows=tuple(
                    (
                        one.name,
                        one.source,
                        write_rate(one.score.f1, digits=2),
                        write_rate(one.score.accuracy, digits=2),
                        write_rate(one.score.yes_ratio, digits=2),
                        str(one.score.n_neither),
                        "" if one.mass is None else f"{one.mass:.3f}",
                    )
                    for one in self.readouts
                ),
                notes=notes,
            ),
        )


@by_name
def audit_readouts(
    answers: pd.DataFrame, *, next_tokens: NextTokens | None = None
) -> ReadoutAudit:
    """Score the same answers by every way of reading them.

    How an answer is read moves POPE's F1 more than many methods do. Of text: POPE's
    own rule, OPERA's (`says_yes`), the first word alone, and the first word of yes or
    no wherever it stands (`read_strictly`); the first two take an answer with neither
    for a yes, the others count it as wrong. Of logits: the greedier of two tokens, for
    each spelling that has both a yes and a no; all spellings together; and the
    likeliest token of all, neither where it is no yes and no no.

    Args:
        answers: One row a question: `present`, whether yes is right, and `answer`, the
            text; without that column only logits are read.
        next_tokens: What the model was ready to say first, row by row; none when None.

    Returns:
        Every reading.

    Raises:
        InputError: If a column is missing, there is nothing to read, or there are not
            as many rows of logits as of answers.

    Example:
        >>> table = pd.DataFrame({"present": [True, False], "answer": ["Yes", "NO"]})
        >>> audit = audit_readouts(table)
        >>> [round(one.score.f1, 1) for one in audit.readouts], round(audit.spread, 1)
        ([66.7, 100.0, 100.0, 100.0], 33.3)
    """
    check_table("answers", answers, present="flag")
    if "answer" not in answers and next_tokens is None:
        msg = "expected the texts in a column 'answer', or next_tokens, got neither"
        raise InputError(msg)
    if "answer" in answers:
        check_table("answers", answers, answer="text")
    check_kind(
        "next_tokens",
        next_tokens,
        (NextTokens, type(None)),
        expected="what read_next_tokens returns, or None",
    )
    if next_tokens is not None and len(next_tokens.likeliest) != len(answers):
        n_rows = len(next_tokens.likeliest)
        msg = f"expected logits of {len(answers)} questions, got those of {n_rows}"
        raise InputError(msg)
    truth = answers[PRESENT].reset_index(drop=True)
    readouts = list(_read_texts(truth, answers)) if "answer" in answers else []
    if next_tokens is not None:
        readouts += _read_logits(truth, next_tokens)
    return ReadoutAudit(
        readouts=tuple(readouts),
        tokens=() if next_tokens is None else next_tokens.tokens,
    )


def _read_texts(truth: pd.Series, answers: pd.DataFrame) -> Iterator[ReadoutScore]:
    texts = list(answers.answer)
    neither = [is_neither(text) for text in texts]
    read: Mapping[str, list[bool | None]] = {
        "pope": [says_yes(text) for text in texts],
        "opera": [says_yes(text, rule="opera") for text in texts],
        "first word": [read_first_word(text) for text in texts],
        "strict": [read_strictly(text) for text in texts],
    }
    for name in READINGS:
        given = {PRESENT: truth, ANSWER: pd.array(read[name], dtype="boolean")}
        table = pd.DataFrame(given)
        if name in ("pope", "opera"):
            table["neither"] = neither
        yield ReadoutScore(name=name, source="text", score=score_answers(table))


def _read_logits(truth: pd.Series, found: NextTokens) -> Iterator[ReadoutScore]:
    spellings: dict[tuple[bool, str], dict[bool, int]] = {}
    for place, token in enumerate(found.tokens):
        case = "lower" if token.word.islower() else token.word[1:].islower() and "title"
        key = (token.spaced, case or "upper")
        spellings.setdefault(key, {})[token.is_yes] = place
    for pair in spellings.values():
        if len(pair) == 2:
            name = " and ".join(str(found.tokens[pair[word]]) for word in (True, False))
            yield _choose(truth, found, name, [pair[True]], [pair[False]])
    yes = [n for n, token in enumerate(found.tokens) if token.is_yes]
    no = [n for n, token in enumerate(found.tokens) if not token.is_yes]
    yield _choose(truth, found, f"all {len(found.tokens)} tokens", yes, no)
    said = {token.id: token.is_yes for token in found.tokens}
    given = [said.get(token) for token in found.likeliest.tolist()]
    yield ReadoutScore(
        name="likeliest token",
        source="logits",
        score=_score(truth, given),
        mass=float(found.probabilities.sum(1).mean()),
    )


def _choose(
    truth: pd.Series, found: NextTokens, name: str, yes: list[int], no: list[int]
) -> ReadoutScore:
    of_yes, of_no = (found.probabilities[:, ids].sum(1) for ids in (yes, no))
    return ReadoutScore(
        name=name,
        source="logits",
        score=_score(truth, (of_yes > of_no).tolist()),
        mass=float((of_yes + of_no).mean()),
    )


def _score(truth: pd.Series, given: Sequence[bool | None]) -> PopeScore:
    answers = pd.array(list(given), dtype="boolean")
    return score_answers(pd.DataFrame({PRESENT: truth, ANSWER: answers}))
