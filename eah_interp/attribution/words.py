"""The words of an answer, and the positions that each was predicted from."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError
from eah_interp.lvlm.inputs import Encoding, append_tokens
from eah_interp.lvlm.runs import refuse_nan
from eah_interp.results import Part

SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
"""How SentencePiece and byte-level tokenizers write a space before a word."""

HALF = "\N{REPLACEMENT CHARACTER}"
"""What stands for a character whose bytes are not all there."""

LONGEST_CHARACTER = 4
"""Bytes, each of which may be a token."""

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "THAI", "LAO", "KHMER")
"""How the names of letters begin that are written without spaces between words."""


@dataclass(frozen=True, eq=False, repr=False)
class AnswerWord(Part):
    """A word of an answer.

    Attributes:
        text: The word, without spaces around it.
        queries: The positions that its tokens were predicted from: a token's is the one
            before it.
    """

    text: str
    queries: tuple[int, ...]


def answer_question(
    model: Any, encoding: Encoding, *, max_new_tokens: int
) -> tuple[Encoding, ColumnMask]:
    """Generate an answer for each row, greedily, and write it after the prompt.

    Args:
        model: An LVLM.
        encoding: Prompts, padded on the left.
        max_new_tokens: Longest answer, in tokens.

    Returns:
        Prompts with their answers; and a mask that is True at the prompts' tokens.

    Raises:
        InputError: If every answer is empty, or one holds the image token.
        NumericalError: If the model's logits are NaN.
    """
    ids = encoding["input_ids"]
    found = model.generate(
        **{name: value for name, value in encoding.items() if name != "labels"},
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=[refuse_nan],
    )
    ends = _list_ends(model)
    answers = [_cut(row, ends) for row in found[:, ids.shape[1] :].tolist()]
    token = model.anatomy.image_token_id
    for row, answer in enumerate(answers):
        if token in answer:
            msg = (
                f"the answer of item {row} holds the image token (id {token}), behind "
                "which there is no image: expected text; ask something else, or give "
                "pose(..., caption=) the answer to read"
            )
            raise InputError(msg)
    if not any(answers):
        msg = (
            "every answer ended before its first word: expected at least one word; "
            "ask something else, or leave words out to read the prompt's last row"
        )
        raise InputError(msg)
    longer = append_tokens(encoding, answers, pad=min(ends, default=0))
    mask = torch.zeros_like(longer["input_ids"], dtype=torch.bool)
    mask[:, : ids.shape[1]] = longer["attention_mask"][:, : ids.shape[1]].bool()
    return longer, mask


def _list_ends(model: Any) -> set[int]:
    """List the tokens after which `generate` stops, by its own config."""
    config = getattr(model._module, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    listed = given if isinstance(given, list | tuple) else [given]
    return {int(token) for token in listed if token is not None}


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens


def find_words(
    model: Any, encoding: Mapping[str, Any], prompt_mask: ColumnMask
) -> tuple[tuple[AnswerWord, ...], ...]:
    """Find the words of the answers that follow prompts.

    Args:
        model: An LVLM.
        encoding: Prompts and answers.
        prompt_mask: True at the prompts' tokens.

    Returns:
        Each row's words, in their order.
    """
    start = int(prompt_mask.nonzero()[:, 1].max()) + 1
    rows = zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
    return tuple(
        tuple(
            AnswerWord(text, tuple(start - 1 + place for place in places))
            for text, places in split_words(
                model.tokenizer, ids[start:][mask[start:].bool()].tolist()
            )
        )
        for ids, mask in rows
    )


def split_words(
    tokenizer: Any, ids: Sequence[int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Split an answer into words: their texts, and which tokens each is made of.

    A word begins at a space or a new line, and in scripts without spaces at each token.
    Signs before and after a word are a word of their own ("boat", "."), those inside
    are part of it ("t-shirt"). Special tokens and mere space belong to none. Without a
    tokenizer each token is a word, written as its number.

    Args:
        tokenizer: The model's; None where there is none.
        ids: The answer's tokens.

    Example:
        >>> import eah_interp as eah
        >>> tokenizer = eah.load().tokenizer
        >>> ids = tokenizer("There is a boat.", add_special_tokens=False)["input_ids"]
        >>> [text for text, tokens in split_words(tokenizer, ids)]
        ['There', 'is', 'a', 'boat', '.']
    """
    if tokenizer is None:
        return [(str(token), (place,)) for place, token in enumerate(ids)]
    lines: list[list[list[int]]] = []
    last: list[int] = []  # the piece before; none where a word begins anew
    for places in _join_characters(tokenizer, ids):
        tokens = [ids[place] for place in places]
        text = _write(tokenizer, tokens)
        if not text.strip():
            last = []
            continue
        if not last or _begins_word(tokenizer, last, tokens, text):
            lines.append([])
        lines[-1].append(places)
        last = tokens
    return [
        (_write(tokenizer, [ids[place] for place in group]).strip(), tuple(group))
        for line in lines
        for group in _set_signs_apart(tokenizer, ids, line)
    ]


def _join_characters(tokenizer: Any, ids: Sequence[int]) -> list[list[int]]:
    """Put tokens together that are bytes of one character; leave special ones out."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    pieces: list[list[int]] = []
    whole = True
    for place, token in enumerate(ids):
        if token in special:
            whole = True
            continue
        if whole or len(pieces[-1]) == LONGEST_CHARACTER:
            pieces.append([])
        pieces[-1].append(place)
        whole = HALF not in tokenizer.decode([ids[one] for one in pieces[-1]])
    return pieces


def _begins_word(tokenizer: Any, last: list[int], tokens: list[int], text: str) -> bool:
    """Tell whether a word begins with some tokens that follow others."""
    if unicodedata.name(text.lstrip()[0], "").startswith(UNSPACED):
        return True
    # Decoded together: alone, SentencePiece drops a space, and others write none.
    before, both = (str(tokenizer.decode(one)) for one in (last, [*last, *tokens]))
    if both.startswith(before):
        text = both[len(before) :]
    return text[:1].isspace()


def _set_signs_apart(
    tokenizer: Any, ids: Sequence[int], pieces: list[list[int]]
) -> list[list[int]]:
    """Cut signs off the ends of a word, and put the tokens of each part together."""
    has_letters = [
        any(sign.isalnum() for sign in _write(tokenizer, [ids[p] for p in piece]))
        for piece in pieces
    ]
    if not any(has_letters):
        parts = [pieces]
    else:
        start = has_letters.index(True)
        stop = len(pieces) - has_letters[::-1].index(True)
        parts = [pieces[:start], pieces[start:stop], pieces[stop:]]
    return [[place for piece in part for place in piece] for part in parts if part]


# ---- Tokens as text.


def write_tokens(model: Any, ids: Tensor) -> tuple[tuple[str, ...], ...]:
    """Write every token as text; as its number where there is no tokenizer.

    Example:
        >>> import eah_interp as eah
        >>> write_tokens(eah.load(), torch.tensor([[5, 6]]))[0] == ("5", "6")
        False
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        return tuple(tuple(map(str, row)) for row in ids.tolist())
    return tuple(
        tuple(_write(tokenizer, [number]) for number in row) for row in ids.tolist()
    )


def _write(tokenizer: Any, ids: Sequence[int]) -> str:
    """Write tokens, with the space before a word that decoding alone drops."""
    piece = str(tokenizer.convert_ids_to_tokens(ids[0]))
    text = str(tokenizer.decode(list(ids)))
    return f" {text}" if piece[:1] in SPACES and not text.startswith(" ") else text
