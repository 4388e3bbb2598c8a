"""Sinks of every kind, in both towers, from one forward pass."""

from dataclasses import dataclass, field
from typing import Any

import nnsight
import torch
from torch import Tensor

from eah_interp.arguments import by_name
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import to_float
from eah_interp.interventions.found_sinks import FoundSinks
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.kind_marks import score_tower
from eah_interp.interventions.point import PatchPoint
from eah_interp.kernels.sink_kinds import (
    MassiveActivations,
    SinkRule,
    find_massive,
)
from eah_interp.kernels.sinks import DEFAULT_BETA, stream_received
from eah_interp.lvlm.anatomy import check_model, name_model
from eah_interp.lvlm.inputs import check_encoding, is_encoding
from eah_interp.lvlm.prompt import Prompt, prompt_of_worker
from eah_interp.lvlm.tower import (
    NO_TOWER,
    TowerReach,
    check_some_image,
    take_most,
)


@by_name
def find_sinks(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    rule: SinkRule | None = None,
    beta: float | None = None,
) -> FoundSinks:
    """Find which image columns are sinks, of the vision tower or the language model.

    A column is a sink of the *tower* if a token that it is made of has a huge norm at
    `vision_output`; of the *language model* if it is massively activated, in what a
    layer of the decoder returns, in a dimension in which it was not when it entered the
    decoder. Both are judged within an item, so that an item has the same sinks alone
    and in a batch; `SinkRule` says from where on, `result.sensitivity()` how many there
    would be with other thresholds. How much attention a column receives does not decide
    its kind, and stands beside it. Learned sinks are parameters and no columns:
    `result.learned_frame()`. Patterns are streamed, never materialised.

    Args:
        model: An LVLM, or its patched twin.
        images: An image or images, or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        rule: The thresholds; `SinkRule()` when None.
        beta: From how many even shares of attention on a head counts in `shares`; 1
            when None, as in `score_sinks`.

    Returns:
        Kinds and what decided them, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or there is no image.
        SettingsError: If `beta` is impossible, or the rule is none.
        ModelError: If nothing of what the tower returns reaches the image tokens.
        UnsupportedError: If the model cannot be differentiated.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> found = find_sinks(model, random_image(), "Is there a cat?")
        >>> found.frame().kind.unique().tolist(), found.norms.shape
        (['none'], torch.Size([1, 4, 26]))
    """
    check_model(model)
    rule = SinkRule() if rule is None else rule
    if not isinstance(rule, SinkRule):
        msg = f"rule must be a SinkRule, got {show_value(rule)}"
        raise SettingsError(msg)
    times = to_float(DEFAULT_BETA["visible"] if beta is None else beta)
    if times is None or not 0 <= times < torch.inf:
        msg = f"beta must be a number of 0 or more, got {show_value(beta)}"
        raise SettingsError(msg)
    encoding = images if is_encoding(images) else model.encode(images, prompts)
    check_encoding(encoding, ids_needed=True)
    seen = _read(model, encoding, rule=rule, beta=times)
    return _label(model, encoding, seen, rule=rule, beta=times)


@dataclass
class _Seen:
    """What one forward pass showed; filled in the trace."""

    columns: Tensor
    tower: Any = None
    tower_norms: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    massive: list[MassiveActivations] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    learned: list[Tensor] = field(default_factory=list)
    n_heads: int = 0
    reason: str = ""


def _read(model: Any, encoding: Any, *, rule: SinkRule, beta: float) -> _Seen:
    """Read both towers in one trace."""
    anatomy = model.anatomy
    kept: Any = None
    with torch.no_grad(), model.trace(**encoding, use_cache=False):
        prompt = prompt_of_worker(model)
        check_some_image(prompt.image_mask)
        kept = nnsight.save(_Seen(prompt.image_mask))
        if anatomy.vision_layers is None:
            kept.reason = NO_TOWER
        else:
            _read_tower(model, prompt, kept)
        stream = model.layers_input[0]
        entering = _look(stream, prompt, kept, rule=rule, entering=None)
        walk = attention_calls(model, layers=sorted(anatomy.sites))
        for layer in range(anatomy.n_layers):
            if layer in anatomy.sites:
                _receive(next(walk), kept, beta=beta)
            stream = model.layers_output[layer]
            _look(stream, prompt, kept, rule=rule, entering=entering)
    seen: _Seen = kept
    return seen


def _read_tower(model: Any, prompt: Prompt, kept: _Seen) -> None:
    """Read the tower's norms, and find which columns its tokens go into."""
    norms = [
        _norms_of(model.vision_layers_output[layer])
        for layer in range(model.anatomy.vision_output or 0)
    ]
    reach = TowerReach.begin(model)
    norms.append(_norms_of(reach.tokens))
    links, kept.reason = reach.end(prompt)
    kept.tower = links
    kept.tower_norms = [n for n in norms if n.shape == norms[-1].shape]


def _norms_of(tokens: Tensor) -> Tensor:
    norms: Tensor = tokens.detach().float().norm(dim=-1).flatten().cpu()
    return norms


def _look(
    stream: Tensor,
    prompt: Prompt,
    kept: _Seen,
    *,
    rule: SinkRule,
    entering: MassiveActivations | None,
) -> MassiveActivations:
    """Look at the residual stream for norms and massive activations."""
    stream = stream.detach()
    columns = prompt.image_mask.to(stream.device)
    tokens = prompt.token_mask.to(stream.device)
    kept.norms.append(stream.float().norm(dim=-1).cpu())
    found = find_massive(
        stream, columns=columns, token_mask=tokens, rule=rule, entering=entering
    )
    if entering is not None:
        kept.massive.append(found)
        kept.scores.append(found.by_column(*columns.shape).cpu())
    return found


def _receive(point: PatchPoint, kept: _Seen, *, beta: float) -> None:
    """Sum what columns receive at one attention call, from image tokens and words."""
    call, prompt = point.call.detach(), point.prompt
    parts = call.pattern_inputs(prompt.scored_mask)
    queries, keys = parts.pop("queries"), parts.pop("keys")
    image = prompt.image_mask[:, : queries.shape[2]]
    words = prompt.token_mask[:, : queries.shape[2]] & ~image
    groups = torch.stack([image, words], 1)
    found = stream_received(queries, keys, groups=groups, **parts)
    width = kept.columns.shape[1]
    kept.layers.append(point.layer)
    kept.attention.append(found.mean.mean(1)[..., :width].cpu())
    kept.counts.append(found.sinks(beta).sum(1)[..., :width].cpu())
    kept.n_heads += queries.shape[1]
    rows = groups.sum(-1)
    mass = (found.lost * rows[:, None]).sum(-1) / rows.sum(-1)[:, None].clamp(min=1)
    has_sinks = parts["sink_logits"] is not None
    kept.learned.append((mass if has_sinks else mass * float("nan")).cpu())


def _label(
    model: Any, encoding: Any, seen: _Seen, *, rule: SinkRule, beta: float
) -> FoundSinks:
    """Make the result of what the pass showed."""
    columns = seen.columns.cpu()
    hidden, nothing = ~columns, float("nan")

    def stack(each: list[Tensor]) -> Tensor:
        if not each:
            return torch.zeros(len(columns), 0, columns.shape[1])
        return torch.stack(each, 1).masked_fill(hidden[:, None], nothing)

    places = [
        torch.cat([p[:, :2], torch.full_like(p[:, :1], layer), p[:, 2:]], 1)
        for layer, p in enumerate(found.places.cpu() for found in seen.massive)
    ]
    thresholds, scores = _judge_tower(seen, rule)
    shares = torch.stack(seen.counts).sum(0) / seen.n_heads
    attention = torch.stack(seen.attention, 1)
    return FoundSinks(
        model=name_model(model),
        columns=columns,
        spans=model.spans(encoding),
        tower_norms=stack(seen.tower_norms),
        norm_thresholds=thresholds,
        norms=stack(seen.norms),
        tower_scores=scores,
        language_scores=stack(seen.scores),
        massive=torch.cat(places),
        massive_values=torch.cat([found.values.cpu() for found in seen.massive]),
        layers=tuple(seen.layers),
        attention=attention.masked_fill(hidden[:, None, None], nothing),
        shares=shares.masked_fill(hidden, nothing),
        learned=torch.stack(seen.learned, 1),
        rule=rule,
        beta=beta,
        reason=seen.reason,
    )


def _judge_tower(seen: _Seen, rule: SinkRule) -> tuple[Tensor, Tensor]:
    """Compare each column's largest token with its item's threshold."""
    columns = seen.columns.cpu()
    thresholds = torch.full((len(columns),), float("nan"))
    if seen.tower is None or seen.reason:
        seen.tower_norms = []
        return thresholds, torch.full(columns.shape, float("nan"))
    links, (n_items, n_keys) = seen.tower, columns.shape
    thresholds, scores = score_tower(seen.tower_norms[-1], links, columns, rule=rule)
    seen.tower_norms = [
        take_most(norms, links, n_items=n_items, n_keys=n_keys)
        for norms in seen.tower_norms
    ]
    return thresholds, scores
