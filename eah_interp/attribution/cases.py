"""Questions in words: which objects are read, and where."""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.arguments import check_mapping, check_unicode
from eah_interp.attribution.mentions import find_mentions
from eah_interp.attribution.objects import (
    ObjectWord,
    check_beginnings,
    check_distinct,
    spell_object,
)
from eah_interp.attribution.readouts import MetricName, Readout, Term, read_tokens
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, to_int, to_ints, to_list
from eah_interp.lvlm.anatomy import check_model
from eah_interp.lvlm.inputs import (
    Encoding,
    append_tokens,
    check_encoding,
    is_encoding,
    repeat_rows,
)

Function = TypeVar("Function", bound=Callable[..., Any])

# ---- One question to a model: its inputs, and the numbers that are read off it.


@dataclass(frozen=True)
class Case:
    """One or more images with prompts, and the numbers to be explained.

    Attributes:
        encoding: The model's inputs; an answer may follow the prompt.
        prompt_mask: True at the prompt's tokens; None where no answer follows.
        readout: Which tokens are read where.
    """

    encoding: Encoding
    prompt_mask: ColumnMask | None
    readout: Readout

    @property
    def n_items(self) -> int:
        """Number of batch items."""
        return int(self.encoding["input_ids"].shape[0])

    @property
    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a forward pass; no loss is wanted."""
        return {k: v for k, v in self.encoding.items() if k != "labels"}

    def copies(self, items: Sequence[int]) -> "Case":
        """Make a batch of copies of items, each with its targets.

        Args:
            items: The item of each row.
        """
        mask = self.prompt_mask
        return Case(
            repeat_rows(self.encoding, items),
            None if mask is None else mask[list(items)],
            self.readout.of_copies(items),
        )


# ---- Cases in which an answer follows the prompt, and is read as it is written.


Aim = tuple[str, int, int, str, list[Term]]
"""Label, batch item, position, text and terms of one target."""


def read_whole_words(
    tokenizer: Any, encoding: Encoding, words: Sequence[ObjectWord]
) -> Case:
    """Read words of several tokens, each after a copy of the prompt."""
    width = encoding["input_ids"].shape[1]
    n_rows = encoding["input_ids"].shape[0]
    rows = [row for row in range(n_rows) for _ in words]
    tails = [list(word.ids[:-1]) for _ in range(n_rows) for word in words]
    aims: list[Aim] = []
    for copy, row in enumerate(rows):
        word = words[copy % len(words)]
        terms = [(width - 1 + i, token, 1.0) for i, token in enumerate(word.ids)]
        label = word.name if n_rows == 1 else f"{word.name} ({row})"
        aims.append((label, copy, width - 1, word.spellings[0].text.strip(), terms))
    longer = append_tokens(repeat_rows(encoding, rows), tails, pad=_padding(tokenizer))
    return Case(
        longer, _mask_prompt(longer, width), read_tokens(aims, metric="log_prob")
    )


def read_captions(
    tokenizer: Any,
    encoding: Encoding,
    words: Sequence[str],
    captions: Sequence[Any],
    *,
    metric: MetricName,
    synonyms: Mapping[str, Sequence[str]],
) -> Case:
    """Read objects at every place where a row's caption is about to name one.

    Raises:
        InputError: If there is not a caption for each row, or no caption names one of
            the objects.
    """
    n_rows, width = encoding["input_ids"].shape
    if len(captions) != n_rows:
        msg = f"expected a caption for each of {n_rows} rows, got {len(captions)}"
        raise InputError(msg)
    for text in captions:
        if isinstance(text, str):
            check_unicode("a caption", text)
    written = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        if isinstance(text, str)
        else [int(token) for token in text]
        for text in captions
    ]
    aims: list[Aim] = []
    for row, ids in enumerate(written):
        for mention in find_mentions(tokenizer, ids, words, synonyms=synonyms):
            stop = mention.stop if metric == "log_prob" else mention.start + 1
            terms = [(width + i - 1, ids[i], 1.0) for i in range(mention.start, stop)]
            place = width + mention.start - 1
            aims.append((mention.name, row, place, mention.text, terms))
    missing = sorted(set(words) - {aim[0] for aim in aims})
    if missing:
        msg = (
            f"the caption does not name {', '.join(missing)}: expected each object in "
            "it (or a plural or synonym); leave the object out, or pass synonyms"
        )
        raise InputError(msg)
    longer = append_tokens(encoding, written, pad=_padding(tokenizer))
    return Case(longer, _mask_prompt(longer, width), read_tokens(aims, metric=metric))


def _mask_prompt(encoding: Encoding, width: int) -> ColumnMask:
    mask = torch.zeros_like(encoding["input_ids"], dtype=torch.bool)
    mask[:, :width] = encoding["attention_mask"][:, :width].bool()
    return mask


def _padding(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


Caption = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""An answer for each row, as text or as token ids."""


class Ask(TypedDict, total=False):
    """What is read of an item: keywords of every function that asks about one.

    Attributes:
        objects: The words, such as `["boat", "fish"]`.
        metric: What is read of them, such as `"logit"`; `pose` says what each is.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
    """

    objects: Sequence[str]
    metric: MetricName
    caption: Caption | None
    synonyms: Mapping[str, Sequence[str]] | None


_DEFAULTS: Ask = {"objects": (), "metric": "logit", "caption": None, "synonyms": None}


def asks(function: Function) -> Function:
    """Spell the keywords of `Ask` out in a function's signature and help.

    A checker sees `**asked: Unpack[Ask]`; so that a reader of `help()` and an editor
    see every keyword, they are put in its place. Unknown ones are refused by the
    function's own name.
    """
    types = get_type_hints(Ask)
    written = inspect.signature(function)
    spelled = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=types[name],
        )
        for name, default in _DEFAULTS.items()
    ]
    own = [
        each for each in written.parameters.values() if each.kind != each.VAR_KEYWORD
    ]
    whole = written.replace(parameters=[*own, *spelled])
    known = whole.parameters

    @functools.wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                msg = (
                    f"{function.__name__}() got an unexpected keyword argument "
                    f"{name!r}: expected {', '.join(known)}"
                )
                raise TypeError(msg)
        if args:
            check_model(args[0])
        return function(*args, **kwargs)

    asking.__signature__ = whole  # type: ignore[attr-defined]
    entries = textwrap.dedent(str(Ask.__doc__).partition("Attributes:\n")[2]).strip()
    text = inspect.cleandoc(function.__doc__ or "")
    asking.__doc__ = re.sub(
        r"^    \*\*asked:.*(?:\n {8}.*)*",
        textwrap.indent(entries, "    "),
        text,
        flags=re.MULTILINE,
    )
    return cast("Function", asking)


def pose(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: Caption | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Case:
    """Ask for objects: at the answer position, or wherever a caption names them.

    Without a caption every object is read after the last token of the prompt, as the
    first word of the answer. With one, the caption follows the prompt, and an object
    is read at every place where the caption is about to name it.

    Args:
        model: An LVLM.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: The words, such as `["boat", "fish"]`.
        metric: `"logit"`: of the word's first token (the mean over synonyms).
            `"log_prob"`: of the whole word, over all its tokens. `"logit_diff"`: the
            logit of the first object minus that of the second. `"yes_no"`: the logit
            of yes minus that of no; takes no objects.
        caption: An answer to read, one for each row: as text, or as the token ids
            that were generated (text may be tokenized in another way than it was).
        synonyms: Other words for an object, by object.

    Returns:
        The inputs and the readout.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or objects do not fit the metric.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> case = pose(eah.load(), random_image(), "Is there a dog?", metric="yes_no")
        >>> [target.label for target in case.readout.targets]
        ['Yes - No']
    """
    check_model(model)
    words = _check_objects(objects, metric, captioned=caption is not None)
    synonyms = _check_synonyms(synonyms)
    if is_encoding(images):
        check_encoding(images)
    if isinstance(images, Encoding):  # it may know how large the images were
        encoding = images
    elif is_encoding(images):
        encoding = Encoding(images)
    else:
        encoding = model.encode(images, prompts)
    tokenizer = model.tokenizer
    if tokenizer is None:
        msg = "the model has no tokenizer to spell objects with; pass a processor"
        raise SettingsError(msg)
    ids = encoding["input_ids"]
    if caption is not None:
        captions = _list_captions(caption)
        return read_captions(
            tokenizer, encoding, words, captions, metric=metric, synonyms=synonyms or {}
        )
    written = [
        spell_object(
            tokenizer,
            word,
            before=ids[0].tolist(),
            synonyms=(synonyms or {}).get(word, ()),
        )
        for word in words
    ]
    if metric == "log_prob" and any(len(word.ids) > 1 for word in written):
        return read_whole_words(tokenizer, encoding, written)
    check_beginnings(tokenizer, written)
    if metric in ("logit", "logit_diff", "yes_no"):
        check_distinct(written)
    return Case(encoding, None, _read_answers(ids, written, metric))


def as_case(model: Any, images: object, prompts: object = None, **asked: Any) -> Case:
    """Take a case as it is, or pose one; the arguments are `pose`'s.

    Raises:
        SettingsError: If a case comes with a second question.
    """
    if not isinstance(images, Case):
        return pose(model, images, prompts, **asked)
    defaults: dict[str, Any] = {**_DEFAULTS}
    more = [k for k, v in asked.items() if v is not None and v != defaults.get(k)]
    if prompts is not None or more:
        named = ", ".join(["prompts"] * (prompts is not None) + more)
        msg = f"a case is a whole question: expected nothing beside it, got {named}"
        raise SettingsError(msg)
    return images


def _check_objects(
    objects: Sequence[str], metric: MetricName, *, captioned: bool
) -> tuple[str, ...]:
    check_choice("metric", metric, MetricName)
    listed = [objects] if isinstance(objects, str) else to_list(objects)
    if listed is None or not all(isinstance(w, str) and w.strip() for w in listed):
        got = show_value(objects)
        raise SettingsError(f"objects must be a list of words, got {got}")
    words = tuple(map(str, listed))
    for word in words:
        check_unicode("an object", word)
    wanted = {"yes_no": "no objects", "logit_diff": "two objects"}
    fits = {"yes_no": not words, "logit_diff": len(words) == 2}
    if not fits.get(metric, bool(words)):
        msg = (
            f'metric="{metric}" takes {wanted.get(metric, "at least one object")}, '
            f"got {len(words)}: {', '.join(words) or 'none'}"
        )
        raise SettingsError(msg)
    if captioned and metric not in ("logit", "log_prob"):
        msg = (
            f'metric="{metric}" is read at the answer position: with a caption use '
            '"logit" or "log_prob"'
        )
        raise SettingsError(msg)
    return ("Yes", "No") if metric == "yes_no" else words


def _check_synonyms(synonyms: object) -> dict[str, tuple[str, ...]]:
    """Check that synonyms are a mapping of words to words."""
    found: dict[str, tuple[str, ...]] = {}
    given = {} if synonyms is None else check_mapping("synonyms", synonyms)
    for name, value in given.items():
        words = [value] if isinstance(value, str) else to_list(value)
        if words is None or not all(isinstance(w, str) and w.strip() for w in words):
            got = show_value(value)
            msg = f"synonyms must be lists of words, got {got} of {name!r}"
            raise SettingsError(msg)
        found[name] = tuple(words)
    return found


def _list_captions(caption: object) -> list[Any]:
    """List an answer for each row: texts, or lists of token ids."""
    captions = [caption] if isinstance(caption, str) else to_list(caption)
    if captions and to_int(captions[0]) is not None:
        captions = [captions]
    found: list[Any] = []
    for one in captions or ():
        ids = one if isinstance(one, str) else to_ints(one)
        if ids is None or (not isinstance(ids, str) and min(ids) < 0):
            found.clear()
            break
        found.append(ids if isinstance(ids, str) else list(ids))
    if not found:
        got = show_value(caption)
        msg = f"caption must be a text or token ids, one for each row, got {got}"
        raise InputError(msg)
    return found


def _read_answers(
    ids: Tensor, words: Sequence[ObjectWord], metric: MetricName
) -> Readout:
    """Read every word after the last token of each row."""
    n_rows, width = ids.shape
    last = width - 1
    aims: list[Aim] = []
    for row in range(n_rows):
        terms = [
            [(last, token, 1 / len(word.first_ids)) for token in word.first_ids]
            for word in words
        ]
        if metric in ("logit_diff", "yes_no"):
            against = [(place, token, -weight) for place, token, weight in terms[1]]
            label = f"{words[0].name} - {words[1].name}"
            aims.append((label, row, last, words[0].name, terms[0] + against))
            continue
        aims += [
            (word.name, row, last, word.spellings[0].text.strip(), own)
            for word, own in zip(words, terms, strict=True)
        ]
    return read_tokens(aims, metric=metric)
