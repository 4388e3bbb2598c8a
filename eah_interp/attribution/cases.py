"""Questions in words: which objects are read, and where."""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.arguments import by_name, check_unicode
from eah_interp.attribution.asked import (
    YES_NO,
    Words,
    check_objects,
    check_synonyms,
    check_truth,
    list_captions,
    share_truth,
)
from eah_interp.attribution.mentions import (
    check_synonyms_of,
    find_mentions,
    find_present,
)
from eah_interp.attribution.objects import (
    ObjectWord,
    check_beginnings,
    check_distinct,
    spell_object,
)
from eah_interp.attribution.readouts import MetricName, Readout, Term, read_tokens
from eah_interp.attribution.same_images import name_image, name_lines
from eah_interp.errors import InputError, SettingsError
from eah_interp.lvlm.anatomy import check_model
from eah_interp.lvlm.inputs import (
    Encoding,
    append_tokens,
    check_encoding,
    is_encoding,
    repeat_rows,
)
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.results import Part

Function = TypeVar("Function", bound=Callable[..., Any])

# ---- One question to a model: its inputs, and the numbers that are read off it.


@dataclass(frozen=True, eq=False, repr=False)
class Case(Part):
    """One or more images with prompts, and the numbers to be explained.

    Attributes:
        encoding: The model's inputs; an answer may follow the prompt.
        prompt_mask: True at the prompt's tokens; None where no answer follows.
        readout: Which tokens are read where.
        about: What each item's yes-or-no question is about; empty where that was not
            said, or the objects themselves are read.
    """

    encoding: Encoding
    prompt_mask: ColumnMask | None
    readout: Readout
    about: tuple[tuple[str, ...], ...] = ()

    def _about(self) -> str:
        width = self.encoding["input_ids"].shape[1]
        read = ", ".join(target.label for target in self.readout.targets[:6])
        more = ", ..." if len(self.readout.targets) > 6 else ""
        return (
            f"{self.n_items} items of {width} tokens; reads {self.readout.metric} of "
            f"{len(self.readout.targets)} targets ({read}{more})"
        )

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
            tuple(self.about[item] for item in items) if self.about else (),
        )


# ---- Cases in which an answer follows the prompt, and is read as it is written.


Aim = tuple[str, int, int, str, list[Term]]
"""Label, batch item, position, text and terms of one target."""


def read_whole_words(
    tokenizer: Any, encoding: Encoding, words: Sequence[Sequence[ObjectWord]]
) -> Case:
    """Read words of several tokens, each after a copy of its row's prompt."""
    width = encoding["input_ids"].shape[1]
    copies = [(row, word) for row, own in enumerate(words) for word in own]
    aims: list[Aim] = []
    for copy, (_, word) in enumerate(copies):
        terms = [(width - 1 + i, token, 1.0) for i, token in enumerate(word.ids)]
        text = word.spellings[0].text.strip()
        aims.append((word.name, copy, width - 1, text, terms))
    longer = append_tokens(
        repeat_rows(encoding, [row for row, _ in copies]),
        [list(word.ids[:-1]) for _, word in copies],
        pad=_padding(tokenizer),
    )
    readout = read_tokens(aims, metric="log_prob")
    targets = tuple(
        replace(target, item=row)
        for target, (row, _) in zip(readout.targets, copies, strict=True)
    )
    return Case(longer, _mask_prompt(longer, width), replace(readout, targets=targets))


def read_captions(
    tokenizer: Any,
    encoding: Encoding,
    words: Words,
    captions: Sequence[Any],
    *,
    metric: MetricName,
    synonyms: Mapping[str, Sequence[str]],
) -> Case:
    """Read objects at every place where a row's caption is about to name one.

    Raises:
        InputError: If there is not a caption for each row, or no caption names one of
            the objects: of a row's own objects, its own caption.
        SettingsError: If synonyms are of no object.
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
    check_synonyms_of(synonyms, words.all)
    aims: list[Aim] = []
    for row, (ids, own) in enumerate(zip(written, words.of_rows(n_rows), strict=True)):
        if not own:
            continue
        others = {word: names for word, names in synonyms.items() if word in own}
        for mention in find_mentions(tokenizer, ids, own, synonyms=others):
            stop = mention.stop if metric == "log_prob" else mention.start + 1
            terms = [(width + i - 1, ids[i], 1.0) for i in range(mention.start, stop)]
            place = width + mention.start - 1
            aims.append((mention.name, row, place, mention.text, terms))
    _check_named(words, n_rows, {(aim[1], aim[0]) for aim in aims})
    longer = append_tokens(encoding, written, pad=_padding(tokenizer))
    return Case(longer, _mask_prompt(longer, width), read_tokens(aims, metric=metric))


def _check_named(words: Words, n_rows: int, named: set[tuple[int, str]]) -> None:
    """Check that captions name the objects: of a row's own, its own caption."""
    if words.by_item:
        of_rows = words.of_rows(n_rows)
        lost = [
            (row, [word for word in own if (row, word) not in named])
            for row, own in enumerate(of_rows)
        ]
        row, missing = next((pair for pair in lost if pair[1]), (0, []))
        which = f"the caption of item {row}"
    else:
        missing = sorted(set(words.all) - {word for _, word in named})
        which = "the caption"
    if missing:
        msg = (
            f"{which} does not name {', '.join(missing)}: expected each object in "
            "it (or a plural or synonym); leave the object out, or pass synonyms"
        )
        raise InputError(msg)


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


Objects = Iterable[str] | Iterable[Iterable[str]]
"""Words for every item, or a list of words for each."""

Truth = Iterable[str] | Iterable[Iterable[str] | None]
"""What is in the image: of each item a list, or None where it is not known."""


class Ask(TypedDict, total=False):
    """What is read of an item: keywords of every function that asks about one.

    Attributes:
        objects: The words, such as `["boat", "fish"]`, for every item; or a list for
            each item, `[["boat", "fish"], ["cup"], []]`.
        metric: What is read of them, such as `"logit"`; `pose` says what each is.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        truth: The objects that are in the image, a list for each item (None where
            that is not known): tables then say which objects are `present`.
    """

    objects: Objects
    metric: MetricName
    caption: Caption | None
    synonyms: Mapping[str, Sequence[str]] | None
    truth: Truth | None


_DEFAULTS: Ask = {
    "objects": (),
    "metric": "logit",
    "caption": None,
    "synonyms": None,
    "truth": None,
}


def asks(function: Function) -> Function:
    """Spell the keywords of `Ask` out in a function's signature and help.

    A checker sees `**asked: Unpack[Ask]`; so that a reader of `help()` and an editor
    see every keyword, they are put in its place.
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

    @functools.wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
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


@by_name
def pose(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Objects = (),
    metric: MetricName = "logit",
    caption: Caption | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    truth: Truth | None = None,
) -> Case:
    """Ask for objects: at the answer position, or wherever a caption names them.

    Without a caption every object is read after the last token of the prompt, as the
    first word of the answer. With one, the caption follows the prompt, and an object
    is read at every place where the caption is about to name it.

    Args:
        model: An LVLM.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: The words, such as `["boat", "fish"]`, for every item; or a list for
            each item, `[["boat", "fish"], ["cup"], []]`, of any lengths.
        metric: `"logit"`: of the word's first token (the mean over synonyms).
            `"log_prob"`: of the whole word, over all its tokens. `"logit_diff"`: the
            logit of the first object minus that of the second. `"yes_no"`: the logit
            of yes minus that of no. No object is read then: those that are given say
            what the question is about, so that `positions="object"` finds it.
        caption: An answer to read, one for each row: as text, or as the token ids
            that were generated (text may be tokenized in another way than it was).
        synonyms: Other words for an object, by object.
        truth: The objects that are in the image, a list for each item, or None where
            that is not known; for a single item also a flat list. An object is
            present if its word, a synonym, or the plural of either is listed.

    Returns:
        The inputs and the readout.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            there is not a list of objects, or of truth, for each item.
        SettingsError: If a word cannot be spelled, or objects or truth do not fit the
            metric.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> case = pose(eah.load(), random_image(), "Is there a dog?", metric="yes_no")
        >>> [target.label for target in case.readout.targets]
        ['Yes - No']
    """
    check_model(model)
    words = check_objects(objects, metric, captioned=caption is not None)
    synonyms = check_synonyms(synonyms)
    there = check_truth(truth, metric)
    if is_encoding(images):
        check_encoding(images, ids_needed=True)
        # it may know how large the images were
        encoding = images if isinstance(images, Encoding) else Encoding(images)
        keys = name_lines(model, encoding)
    else:
        rows = model._rows((images, prompts))
        encoding = model._encode_rows(rows)
        keys = [tuple(name_image(image) for image in row.images) for row in rows]
    tokenizer = model.tokenizer
    if tokenizer is None:
        msg = "the model has no tokenizer to spell objects with; pass a processor"
        raise SettingsError(msg)
    n_items = encoding["input_ids"].shape[0]
    about: tuple[tuple[str, ...], ...] = ()
    if metric == "yes_no":
        about, words = words.of_rows(n_items), YES_NO
    asked = words.of_rows(n_items)
    known = share_truth(there, n_items)
    present = [
        None
        if own is None
        else find_present(each, own, synonyms=synonyms)
        if each
        else frozenset()
        for each, own in zip(asked, known, strict=True)
    ]
    with torch.inference_mode(mode=False):  # gradients need positions made outside
        case = _read(
            tokenizer,
            encoding,
            words,
            metric=metric,
            captions=None if caption is None else list_captions(caption),
            synonyms=synonyms,
        )
    targets = tuple(
        replace(
            target,
            present=None if found is None else target.label in found,
            images=keys[target.asked_of],
        )
        for target in case.readout.targets
        for found in [present[target.asked_of]]
    )
    return replace(case, readout=replace(case.readout, targets=targets), about=about)


def _read(
    tokenizer: Any,
    encoding: Encoding,
    words: Words,
    *,
    metric: MetricName,
    captions: Sequence[Any] | None,
    synonyms: Mapping[str, Sequence[str]],
) -> Case:
    """Read each row's objects: in its caption, or after its prompt."""
    if captions is not None:
        return read_captions(
            tokenizer, encoding, words, captions, metric=metric, synonyms=synonyms
        )
    written = _spell(tokenizer, encoding, words, synonyms)
    if metric == "log_prob" and any(len(w.ids) > 1 for own in written for w in own):
        return read_whole_words(tokenizer, encoding, written)
    for own in dict.fromkeys(map(tuple, written)):
        check_beginnings(tokenizer, own)
        if own and metric in ("logit", "logit_diff", "yes_no"):
            check_distinct(own)
    return Case(encoding, None, _read_answers(encoding["input_ids"], written, metric))


def _spell(
    tokenizer: Any,
    encoding: Encoding,
    words: Words,
    synonyms: Mapping[str, Sequence[str]],
) -> list[list[ObjectWord]]:
    """Spell each row's objects as they are written after its prompt."""
    ids = encoding["input_ids"]
    real = find_tokens(encoding.get("attention_mask"), ids)

    @functools.cache  # rows of one prompt are spelled alike
    def spell(before: tuple[int, ...], word: str) -> ObjectWord:
        others = synonyms.get(word, ())
        return spell_object(tokenizer, word, before=before, synonyms=others)

    return [
        [spell(tuple(ids[row, real[row]].tolist()), word) for word in own]
        for row, own in enumerate(words.of_rows(ids.shape[0]))
    ]


def as_case(model: Any, images: object, prompts: object = None, **asked: Any) -> Case:
    """Take a case as it is, or pose one; the arguments are `pose`'s.

    Raises:
        SettingsError: If a case comes with a second question.
    """
    if not isinstance(images, Case):
        return pose(model, images, prompts, **asked)
    defaults: dict[str, Any] = {**_DEFAULTS}
    more = [
        name
        for name, value in asked.items()
        # arrays and columns of pandas compare by the element: they are no default
        if value is not None
        and not (isinstance(value, str | tuple) and value == defaults.get(name))
    ]
    if prompts is not None or more:
        named = ", ".join(["prompts"] * (prompts is not None) + more)
        msg = f"a case is a whole question: expected nothing beside it, got {named}"
        raise SettingsError(msg)
    return images


def _read_answers(
    ids: Tensor, words: Sequence[Sequence[ObjectWord]], metric: MetricName
) -> Readout:
    """Read every row's words after its last token."""
    last = ids.shape[1] - 1
    aims: list[Aim] = []
    for row, own_words in enumerate(words):
        if not own_words:
            continue
        terms = [
            [(last, token, 1 / len(word.first_ids)) for token in word.first_ids]
            for word in own_words
        ]
        if metric in ("logit_diff", "yes_no"):
            against = [(place, token, -weight) for place, token, weight in terms[1]]
            first, second = own_words
            label = f"{first.name} - {second.name}"
            aims.append((label, row, last, first.name, terms[0] + against))
            continue
        aims += [
            (word.name, row, last, word.spellings[0].text.strip(), own)
            for word, own in zip(own_words, terms, strict=True)
        ]
    return read_tokens(aims, metric=metric)
