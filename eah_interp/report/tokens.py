"""Words as a model's tokens: which of them could come next."""

from typing import Any

from torch import Tensor

from eah_interp.errors import InputError
from eah_interp.lvlm import LVLM
from eah_interp.report.reading import PLAIN, Reading


def next_tokens(model: LVLM, text: str, word: str) -> list[int]:
    """List the tokens that could begin a word after a text, spaced from it or not.

    Only spellings that leave the tokens of the text as they are count, and whose first
    token has a letter: a blank alone begins every word. After a letter a word is
    spaced.
    """
    tokenizer = model.tokenizer
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = []
    for spelling in (" " + word,) if text[-1:].isalnum() else (" " + word, word):
        ids = tokenizer(text + spelling, add_special_tokens=False)["input_ids"]
        kept, new = ids[: len(before)], ids[len(before) :]
        if kept != before or not new or new[0] == tokenizer.unk_token_id:
            continue
        if tokenizer.decode(new[:1]).strip():
            found.append(int(new[0]))
    return list(dict.fromkeys(found))


def yes_no_tokens(model: LVLM, reading: Reading) -> tuple[int, int] | None:
    """Find the tokens that begin "Yes" and "No" after a prompt.

    Of the spellings with and without a space, the one that the plain model deems
    likelier. None where the tokenizer has no such words.
    """
    words = [next_tokens(model, reading.text, word) for word in ("Yes", "No")]
    pairs = list(zip(*words, strict=False))
    if not pairs:
        return None
    plain = reading.logits[PLAIN]
    yes, no = max(pairs, key=lambda pair: float(plain[list(pair)].logsumexp(0)))
    return yes, no


def object_token(model: LVLM, reading: Reading, word: str) -> int:
    """Find the token that begins an object's name after a text.

    Raises:
        InputError: If the tokenizer does not know the word.
    """
    found = next_tokens(model, reading.text, word)
    if not found:
        msg = (
            f"the tokenizer has no token that begins {word!r}: name other objects with "
            "--object and --absent"
        )
        raise InputError(msg)
    return found[0]


def likeliest(model: LVLM, logits: Tensor, *, k: int = 5) -> list[dict[str, Any]]:
    """List the `k` likeliest next tokens with their logits."""
    values, ids = logits.topk(k)
    return [
        {"token": name_token(model, token), "id": token, "logit": value}
        for value, token in zip(values.tolist(), ids.tolist(), strict=True)
    ]


def name_token(model: LVLM, token: int) -> str:
    """Name a token; embeddings may have more rows than the tokenizer has tokens."""
    name = model.tokenizer.convert_ids_to_tokens(token)
    return f"<no token, id {token}>" if name is None else str(name)
