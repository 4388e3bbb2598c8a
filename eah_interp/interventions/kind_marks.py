"""Which image columns are sinks of one kind, in the run that an intervention is in.

`find_sinks` looks at a whole run; an intervention can know only what has happened by
the time it acts. Sinks of the tower are known when the decoder begins. Sinks of the
language model are those that are massively activated in what enters the layer that is
looked at, in dimensions in which they were not when they entered the decoder.
"""

from dataclasses import dataclass
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from eah_interp._types import ColumnMask, SinkColumns
from eah_interp.errors import UnsupportedError
from eah_interp.kernels.sink_kinds import (
    MassiveActivations,
    SinkRule,
    find_massive,
    mark_sinks,
    norm_threshold,
)
from eah_interp.kernels.sinks import check_image_columns
from eah_interp.lvlm.prompt import Memory, Prompt
from eah_interp.lvlm.tower import TowerReach, take_most


@dataclass(frozen=True)
class KindMarks:
    """What was seen of one kind of sinks before the decoder's first layer.

    Attributes:
        kind: `"tower"` or `"language"`.
        prompt: The prompt's tokens.
        rule: From where on a token is a sink.
        tower: The tower's sinks, where they are asked for.
        entering: Massive activations that entered the decoder, where the language
            model's sinks are asked for.
    """

    kind: SinkColumns
    prompt: Prompt
    rule: SinkRule
    tower: ColumnMask | None = None
    entering: MassiveActivations | None = None

    def mask(self, stream: Tensor | None) -> ColumnMask:
        """Mark the sinks of this kind among the prompt's tokens, in one layer.

        Args:
            stream: What enters the layer; the tower's sinks need none.
        """
        if self.tower is not None:
            return self.tower
        assert stream is not None
        found = _look(stream, self.prompt, self.rule, entering=self.entering)
        return mark_sinks(found.by_column(*stream.shape[:2]))


def _look(
    stream: Tensor,
    prompt: Prompt,
    rule: SinkRule,
    *,
    entering: MassiveActivations | None = None,
) -> MassiveActivations:
    fitted = _fit(prompt, stream)
    return find_massive(
        stream.detach(),
        columns=fitted.image_mask,
        token_mask=fitted.scored_mask,
        rule=rule,
        entering=entering,
    )


def _fit(prompt: Prompt, stream: Tensor) -> Prompt:
    """Repeat the prompt's rows for beams."""
    return prompt.fit_size(*stream.shape[:2], device=stream.device)


def find_marks(
    model: Any, kind: SinkColumns, whole: Prompt, memory: Memory
) -> KindMarks:
    """Look at what enters the decoder for sinks of one kind, once in a run.

    Called in a trace, before anything of the decoder is read.

    Args:
        model: The traced model.
        kind: `"tower"` or `"language"`.
        whole: The prompt's tokens.
        memory: What this worker has learned about its run.

    Raises:
        UnsupportedError: If the model has no map from the tower's tokens to columns,
            or at a step after the prompt.
    """
    if kind in memory.marks:
        known: KindMarks = memory.marks[kind]
        return known
    step = Mediator.current("sinks by kind").iteration or 0
    if step > 0:
        msg = (
            f"sinks of the {kind} kind are found in the prompt, which step 0 reads: "
            f"called first at step {step}; call it from step 0 on"
        )
        raise UnsupportedError(msg)
    check_image_columns(whole.image_mask)
    rule = SinkRule()
    if kind == "tower":
        links, norms, stream = _reach(model, whole)
        fitted = _fit(whole, stream)
        columns = fitted.image_mask
        _, scores = score_tower(norms, links.cpu(), columns.cpu(), rule=rule)
        tower = mark_sinks(scores).to(columns.device)
        marks = KindMarks(kind, fitted, rule, tower=tower)
    else:
        stream = model.layers_input[0]
        entering = _look(stream, whole, rule)
        marks = KindMarks(kind, _fit(whole, stream), rule, entering=entering)
    memory.marks[kind] = marks
    return marks


def _reach(model: Any, whole: Prompt) -> tuple[Tensor, Tensor, Tensor]:
    """Find the tower's links to columns, its tokens' norms, and the decoder's door."""
    if model.anatomy.vision_layers is None:
        msg = (
            "this model has no sinks of a vision tower: it has no tower of layers that "
            'attend; use columns="language" or "all"'
        )
        raise UnsupportedError(msg)
    reach = TowerReach.begin(model)
    norms = reach.tokens.float().norm(dim=-1).flatten().cpu()
    links, reason = reach.end(whole)
    if reason:
        msg = (
            f"sinks of the tower have no columns of their own in this model: {reason}; "
            'use columns="language" or "all"'
        )
        raise UnsupportedError(msg)
    return links, norms, model.layers_input[0]


def score_tower(
    norms: Tensor, links: Tensor, columns: ColumnMask, *, rule: SinkRule
) -> tuple[Tensor, Tensor]:
    """Compare the largest token of each image column with its item's threshold.

    Args:
        norms: The norm of each of the tower's tokens.
        links: Token, item and column of each link.
        columns: The image columns.
        rule: From where on a token is a sink.

    Returns:
        The threshold of each item, and each column's score; NaN where there is none.
    """
    n_items, n_keys = columns.shape
    most = take_most(norms, links, n_items=n_items, n_keys=n_keys)
    thresholds = torch.full((n_items,), float("nan"))
    for item in range(n_items):
        tokens = sorted(set(links[links[:, 1] == item, 0].tolist()))
        thresholds[item] = norm_threshold(norms[tokens], rule)
    return thresholds, most / thresholds[:, None]
