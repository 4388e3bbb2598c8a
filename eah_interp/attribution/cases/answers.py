"""Cases in which an answer follows the prompt, and is read as it is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eah_interp._types import ColumnMask
from eah_interp.attribution.cases.case import Case
from eah_interp.attribution.cases.readouts import MetricName, Term, read_tokens
from eah_interp.attribution.objects.mentions import find_mentions
from eah_interp.attribution.objects.objects import ObjectWord
from eah_interp.errors import InputError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.teacher import append_tokens, repeat_rows

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
