"""What a model would say next, under each condition; and what model it is."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eah_interp._types import DonorRule
from eah_interp.errors import InputError, UnsupportedError
from eah_interp.interventions import EAH, EAHPatch, edit, intervene
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.inputs import image_placeholder, pair_rows, write_prompt
from eah_interp.results import Part
from eah_interp.toy.language import TOY_KNOWS, speaks_toy


@runtime_checkable
class Progress(Protocol):
    """What is told how far the work is."""

    def expect(self, steps: int) -> None:
        """Announce steps to come."""

    def step(self, what: str) -> None:
        """Name what begins now."""


PLAIN, PATCHED = "plain", "EAH"
"""Keys of the two runs, also in saved records; readers see `plain` and `patched`."""

CONTROLS: tuple[DonorRule, ...] = ("densest", "sparsest", "random", "shuffled")
"""Donor rules that a patch is compared with, its own left out."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reading(Part):
    """What a model would say next after one prompt, under each condition.

    Attributes:
        text: The whole text the model read, image placeholders unexpanded.
        position: Where the logits were read; the last position of the prompt.
        logits: Next-token logits by condition, `"plain"` and `"EAH"` first.
        patches: What the patch did, by condition; none for `"plain"`.
    """

    text: str
    position: int
    logits: Mapping[str, Float[Tensor, " vocab"]]
    patches: Mapping[str, EAHPatch]


REDRAWS = 8
"""How often a random donor is drawn anew while it is the head that EAH chose."""


def compare_with(eah: EAH, *, controls: bool) -> dict[str, EAH | None]:
    """Name the conditions: plain, EAH, and the control donors.

    Example:
        >>> list(compare_with(EAH(), controls=True))
        ['plain', 'EAH', 'sparsest', 'random', 'shuffled']
    """
    compared: dict[str, EAH | None] = {PLAIN: None, PATCHED: eah}
    for rule in CONTROLS if controls else ():
        if rule != eah.donor:
            compared[rule] = dataclasses.replace(eah, donor=rule)
    return compared


def read_next_token(
    model: LVLM,
    image: Image.Image,
    *,
    prompt: str,
    conditions: Mapping[str, EAH | None],
    answer_start: str = "",
    bar: Progress | None = None,
) -> Reading:
    """Read the logits of the next token after a prompt, a forward pass a condition.

    Args:
        model: The model.
        image: The image.
        prompt: What is asked.
        conditions: Settings by name; None for no patch.
        answer_start: Words that the answer already begins with.
        bar: Told of each forward pass.

    Returns:
        Logits and patches by condition, on the CPU.
    """
    text = write_text(model, image, prompt=prompt, answer_start=answer_start)
    encoding = model.encode(image, text)
    logits: dict[str, torch.Tensor] = {}
    patches: dict[str, EAHPatch] = {}
    for name, eah in conditions.items():
        if bar is not None:
            bar.step(f"{prompt} {answer_start} [{name}]")
        if eah is None:
            with torch.no_grad(), model.trace(**encoding):
                last = model.output.logits[0, -1].save()
        else:
            patch, last = _patched_pass(model, encoding, eah)
            own = patches.get(PATCHED)
            for seed in range(REDRAWS):
                if name != "random" or own is None or _heads(patch) != _heads(own):
                    break
                # the very head that EAH chose is no control: draw another
                other = dataclasses.replace(eah, seed=seed)
                patch, last = _patched_pass(model, encoding, other)
            patches[name] = patch
        logits[name] = last.float().cpu()
    position = encoding["input_ids"].shape[1] - 1
    return Reading(text, position, logits, patches)


def _patched_pass(
    model: LVLM, encoding: Mapping[str, Any], eah: EAH
) -> tuple[EAHPatch, torch.Tensor]:
    with torch.no_grad(), model.trace(**encoding):
        patch = intervene(model, eah)
        last = model.output.logits[0, -1].save()
    return patch, last


def _heads(patch: EAHPatch) -> list[int]:
    return [int(layer.donors[0]) for layer in patch.layers]


def write_text(
    model: LVLM, image: Image.Image, *, prompt: str, answer_start: str = ""
) -> str:
    """Write what the model reads: the prompt in its template, and the answer's start.

    Raises:
        InputError: If an answer's start cannot be placed, because the processor does
            not write the image's placeholder into the text.
    """
    placeholder = image_placeholder(model.processor)
    row = pair_rows(image, prompt, placeholder=placeholder)[0]
    text = write_prompt(row, model.processor, placeholder=placeholder)
    if not answer_start:
        return text if placeholder is not None else prompt
    if placeholder is None:
        msg = "this processor has no image placeholder, so an answer cannot be begun"
        raise InputError(msg)
    return text + ("" if text[-1:].isspace() else " ") + answer_start


def describe(
    model: LVLM,
    image: Image.Image,
    *,
    prompt: str,
    eah: EAH | None,
    max_new_tokens: int,
    bar: Progress | None,
) -> str:
    """Answer in words, greedily, plain or patched."""
    if bar is not None:
        bar.step(f"{prompt} [{PLAIN if eah is None else PATCHED}, in words]")
    answers = model if eah is None else edit(model, eah)
    return str(
        answers.describe(image, prompt, max_new_tokens=max_new_tokens, do_sample=False)
    )


# ---- Words as a model's tokens: which of them could come next.


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
    """Find the token that begins an object's name after the text of a reading.

    Raises:
        InputError: If the tokenizer does not know the word.
    """
    return first_token(model, reading.text, word)


def first_token(model: LVLM, text: str, word: str) -> int:
    """Find the token that begins a word after a text.

    Raises:
        InputError: If the tokenizer does not know the word.
    """
    found = next_tokens(model, text, word)
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


# ---- What made a result: packages and the model.


MOST_HASHED = 2_000_000_000
"""Weights of up to this many bytes are hashed: a few seconds."""


def list_versions() -> dict[str, str]:
    """List the versions of the packages that made a result."""
    import platform
    from importlib.metadata import version

    import eah_interp

    names: Iterable[str] = ("torch", "transformers", "nnsight")
    return {
        "eah_interp": eah_interp.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def note_image(model: LVLM, *, drawn: bool = False) -> str:
    """Explain what a model cannot know of an image; empty where it may know all.

    Args:
        model: The model.
        drawn: Whether the toy world drew the image.
    """
    return "" if drawn or not speaks_toy(model.tokenizer) else TOY_KNOWS


def list_model(model: LVLM, name: str | None) -> dict[str, Any]:
    """List the facts of the model that made a result."""
    return {
        "name": name or "toy",
        "class": type(model.config).__name__.removesuffix("Config"),
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "d_head": model.d_head,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def describe_model(model: LVLM, name: str | None) -> dict[str, Any]:
    """List the facts of a model, its attention backend and its weights' hash included.

    Weights are hashed up to `MOST_HASHED` bytes; beyond, their size stands instead.
    """
    from eah_interp.studies.manifest import hash_weights

    module = model._module
    size = sum(p.nbytes for p in module.parameters())
    text = module.config.get_text_config()
    weights = f"not hashed: {size / 1e9:.1f} GB"
    if size <= MOST_HASHED:
        try:
            weights = hash_weights(module)
        except UnsupportedError:
            weights = "not hashed: 4-bit weights, repacked for this CPU"
    return {
        **list_model(model, name),
        "attention": str(text._attn_implementation),
        "weights": weights,
    }
