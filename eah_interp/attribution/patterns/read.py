"""What some heads attend to from some positions, plain and under a patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eah_interp._types import ColumnMask, Definition
from eah_interp.attribution.direct.heads import check_patch
from eah_interp.attribution.patching.nodes import NodeName, find_nodes
from eah_interp.attribution.patterns.head_patterns import HeadPatterns
from eah_interp.attribution.patterns.pattern_run import PatternRun
from eah_interp.attribution.patterns.visit import (
    Visit,
    check_unedited,
    open_question,
    visit_layers,
)
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.worker import Prompt

SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
"""How SentencePiece and byte-level tokenizers write a space before a word."""


def read_patterns(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    heads: Sequence[NodeName],
    query: int | Sequence[int] | Literal["all"] = -1,
    patch: EAH | None = None,
    definition: Definition | None = None,
    beta: float | None = None,
) -> HeadPatterns:
    """Read what heads attend to from some positions, and which columns are sinks.

    The weights are recomputed in float32 from the queries and keys of the attention
    call, whatever the backend: `softmax(q k^T / sqrt(d_head) + mask)` with all that the
    call says of scale, caps, windows and learned sinks. Of a patched run they are those
    that heads attend with: in a patched layer, the donor's. Only the asked rows of the
    asked heads are kept; no whole `[batch, head, query, key]` is made.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        heads: Which heads, such as `["L1H3", (2, 0)]`.
        query: Position or positions that attend, padding counted; negative ones count
            from the end. `-1`, the prompt's last token, says what the first word of the
            answer is read from. `"all"` keeps whole patterns of these heads.
        patch: EAH settings of a second, patched run.
        definition: Of a vision sink; the patch's, or `"visible"`, when None.
        beta: Its threshold; the definition's own when None.

    Returns:
        Rows and sinks, on the CPU.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If a head, layer or position does not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model is a patched twin, or layers read unlike keys.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = read_patterns(eah.load(), random_image(), heads=["L1H3", "L2H0"])
        >>> found.names, tuple(found.plain.rows.shape)[:3]
        (('L1H3', 'L2H0'), (1, 2, 1))
        >>> found.picture("L1H3")[0].shape  # the attention paid to 10 x 10 patches
        torch.Size([10, 10])
    """
    check_unedited(model)
    asked = find_nodes(model, heads)
    blocks = [node.name for node in asked if node.head is None]
    if blocks:
        msg = f"{', '.join(blocks)} has no pattern: expected heads, such as L1H3"
        raise SettingsError(msg)
    named = tuple((node.layer, int(node.head or 0)) for node in asked)
    if patch is not None:
        check_patch(model, patch)
    settings = _choose_settings(patch, definition, beta)
    encoding, prompt_mask = open_question(model, images, prompts)
    positions = _find_positions(query, int(encoding["input_ids"].shape[1]))
    asked_of = _Asked(encoding, prompt_mask, named, positions, settings)
    plain = _run(model, asked_of, None)
    patched = None if patch is None else _run(model, asked_of, patch)
    return HeadPatterns(
        heads=named,
        positions=torch.tensor(positions),
        tokens=write_tokens(model, encoding["input_ids"]),
        spans=model.spans(encoding),
        images=plain.images,
        padding=plain.padding,
        plain=plain.found,
        patch=patch,
        patched=None if patched is None else patched.found,
        donors={} if patched is None else patched.donors,
        sinks_by=settings,
    )


def _choose_settings(
    patch: EAH | None, definition: Definition | None, beta: float | None
) -> EAH:
    if definition is None and patch is not None:
        definition = patch.definition
        beta = patch.beta if beta is None else beta
    return EAH(definition=definition or "visible", beta=beta)


@dataclass(frozen=True)
class _Asked:
    """What is read of every run."""

    encoding: Mapping[str, Any]
    prompt_mask: ColumnMask | None
    heads: tuple[tuple[int, int], ...]
    positions: list[int]
    settings: EAH


@dataclass(frozen=True)
class _Read:
    """What was read of one run."""

    found: PatternRun
    images: Tensor
    padding: Tensor
    donors: dict[int, Tensor]


def _run(model: Any, asked: _Asked, eah: EAH | None) -> _Read:
    """Run a model once, and read the heads at their layers.

    Raises:
        UnsupportedError: If the layers do not read the same keys.
    """
    rows: dict[tuple[int, int], Tensor] = {}
    sinks: dict[tuple[int, int], Tensor] = {}
    prompts: list[Prompt] = []

    def look(visit: Visit) -> None:
        own = [head for layer, head in asked.heads if layer == visit.layer]
        read = visit.rows(asked.positions, own)
        found = visit.score(asked.settings)
        marked = found.sinks(float(asked.settings.beta or 0)).cpu()
        for index, head in enumerate(own):
            rows[visit.layer, head] = read[:, index]
            sinks[visit.layer, head] = marked[:, head]
        prompts.append(visit.prompt)

    donors = visit_layers(
        model,
        asked.encoding,
        look,
        layers=sorted({layer for layer, _ in asked.heads}),
        eah=eah,
        prompt_mask=asked.prompt_mask,
    )
    widths = {row.shape[-1] for row in rows.values()}
    if len(widths) > 1:
        msg = (
            f"the heads' layers read {sorted(widths)} keys, so their patterns have no "
            "common axis: expected heads of layers that read alike; read them apart"
        )
        raise UnsupportedError(msg)
    (width,) = widths
    return _Read(
        found=PatternRun(
            rows=torch.stack([rows[head] for head in asked.heads], 1),
            sinks=torch.stack([sinks[head] for head in asked.heads], 1),
        ),
        images=prompts[0].image_mask[:, :width].cpu(),
        padding=~prompts[0].token_mask[:, :width].cpu(),
        donors=donors,
    )


def _find_positions(
    query: int | Sequence[int] | Literal["all"], width: int
) -> list[int]:
    """Say which positions are meant, counted from the front.

    Raises:
        SettingsError: If one does not exist, is named twice, or there is none.
    """
    if query == "all":
        return list(range(width))
    listed = [query] if isinstance(query, int) else list(query)
    beyond = [q for q in listed if not isinstance(q, int) or not -width <= q < width]
    found = [q % width for q in listed if q not in beyond]
    if beyond or not found or len(set(found)) < len(found):
        msg = (
            f"query={query!r} does not fit a prompt of {width} tokens: expected "
            f'positions from {-width} to {width - 1}, each once, or "all"'
        )
        raise SettingsError(msg)
    return found


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
        tuple(_write(tokenizer, number) for number in row) for row in ids.tolist()
    )


def _write(tokenizer: Any, number: int) -> str:
    """Write one token, with the space before a word that decoding alone drops."""
    piece = str(tokenizer.convert_ids_to_tokens(number))
    text = str(tokenizer.decode([number]))
    return f" {text}" if piece[:1] in SPACES and not text.startswith(" ") else text
