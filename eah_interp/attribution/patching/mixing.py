"""One run's attention pattern with another run's values."""

from dataclasses import replace

import torch
from torch import Tensor

from eah_interp._types import HeadOutputs
from eah_interp.attribution.patching.recording import Recording
from eah_interp.interventions.donation import (
    heads_changed,
    patched_outputs,
    patched_rows,
    recipient_mask,
)
from eah_interp.lvlm.attention import AttentionCall


def mix_runs(
    run: Recording, layer: int, call: AttentionCall, *, values: Tensor
) -> HeadOutputs:
    """Mix values by the pattern that a call has in a run.

    Where the run was patched, that is the donated pattern, for the heads and rows
    that received it. Masks, position biases and learned sinks are the run's own.

    Args:
        run: The run whose pattern is used, and whose patch.
        layer: The decoder layer.
        call: The layer's attention call in that run, of one item.
        values: `[1 kv_head key d_value]`.

    Returns:
        `[1 query head d_value]`.
    """
    call = replace(call, values=values)
    output = call.attend()
    patch = run.patches.get(layer)
    if patch is None:
        return output
    assert run.eah is not None
    assert run.prompt is not None
    new = patched_outputs(run.eah, call, run.prompt, patch)
    recipients = recipient_mask(run.eah, (1, call.n_heads), device=new.device)
    change = heads_changed(patch.patched, recipients, n_heads=call.n_heads)
    where = change[:, None, :, None]
    rows = patched_rows(run.eah, run.prompt, call.queries.shape[2])
    if rows is not None:
        where = where & rows[:, :, None, None]
    return torch.where(where, new, output)
