"""The end of a model, to be applied to the residual stream of any layer.

It is the model's own final norm and unembedding, and what happens to the logits after
it: nothing, a constant factor (Granite), a soft cap (Gemma 2), padding cut off. Which
of these is found by comparing what the unembedding returned with the model's logits.
"""

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eah_interp.attribution.cases import Case
from eah_interp.attribution.readouts import keep_logits
from eah_interp.errors import ModelError, NumericalError
from eah_interp.interventions.donation import donors_by_layer
from eah_interp.interventions.intervene import attention_calls
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.module_hooks import first_output
from eah_interp.lvlm.weights import find_device

Logits = Float[Tensor, "place vocab"]

Streams = Float[Tensor, "place d_model"]

OFF = -1e30
"""Logits below it were switched off by the model, such as Chameleon's image tokens."""

_LOOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}

_EXACT = 1e-4


@dataclass(frozen=True)
class Unembedding:
    """What turns a residual stream into logits.

    Attributes:
        norm: The final norm.
        projection: The output embedding.
        scale: What its output is multiplied by.
        cap: The soft cap after that: `cap tanh(x / cap)`; None for none.
        off: Tokens that the model switches off.
        any_off: Whether there are any.
    """

    norm: nn.Module
    projection: nn.Module
    scale: float
    cap: float | None
    off: Bool[Tensor, " vocab"]
    any_off: bool = True

    @torch.no_grad()
    def read(self, streams: Streams) -> Logits:
        """Turn residual streams into logits, float32; -inf where switched off."""
        normed = self.norm(streams.to(find_device(self.projection))[None])
        logits = self.projection(normed)[0, :, : len(self.off)].float()
        logits = _finish(logits, self.scale, self.cap)
        if not self.any_off:
            return logits
        return logits.masked_fill(self.off.to(logits.device), -math.inf)


def find_unembedding(
    model: Any, *, raw: Float[Tensor, "place padded"], final: Logits, last: Streams
) -> Unembedding:
    """Find the end of a model, and check that it is the whole end.

    Args:
        model: An LVLM.
        raw: What the output embedding returned at some places.
        final: The model's logits there; padding may have been cut off.
        last: What the last layer returned there.

    Returns:
        The end: of what the last layer returned, it makes the model's logits.

    Raises:
        ModelError: If something else happens to the logits, or between the last layer
            and the norm.
    """
    root: nn.Module = model._module
    anatomy = model.anatomy
    final = final.float()
    off = (final < OFF).all(0)
    if not bool(final[:, ~off].isfinite().all()):
        msg = "the model's logits are NaN or infinite: expected finite numbers; load it"
        raise NumericalError(f"{msg} in another dtype (bfloat16, not float16)")
    scale, cap = _fit_logits(model, raw[:, : final.shape[-1]].float(), final)
    norm: nn.Module = nn.Identity()
    if anatomy.final_norm is not None:
        norm = root.get_submodule(anatomy.final_norm)
    projection = root.get_submodule(str(anatomy.unembedding))
    end = Unembedding(norm, projection, scale, cap, off, any_off=bool(off.any()))
    found = end.read(last)
    error = _relative_error(found, final, off)
    if not error <= _LOOSE.get(model._module.dtype, _EXACT):
        msg = (
            f"the final norm and the unembedding do not make this model's logits of "
            f"what its last layer returns: they are {error:.2g} off; it has no "
            "residual stream that could be read by layer"
        )
        raise ModelError(msg)
    return end


def _finish(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * (logits / cap).tanh()


def _fit_logits(model: Any, raw: Tensor, final: Tensor) -> tuple[float, float | None]:
    """Find the scale and the soft cap between two sets of logits."""
    off = (final < OFF).all(0)
    allowed = _LOOSE.get(model._module.dtype, _EXACT)
    text = model.config.get_text_config(decoder=True)
    cap = getattr(text, "final_logit_softcapping", None)
    tried: list[tuple[float, float | None]] = [(1.0, None)]
    on = ~off
    before, after = raw[:, on].double(), final[:, on].double()
    size = before.square().sum().clamp(min=1e-30)
    tried.append((float((before * after).sum() / size), None))
    if cap:
        uncapped = cap * (after / cap).clamp(-1 + 1e-9, 1 - 1e-9).atanh()
        tried += [(1.0, float(cap))]
        tried += [(float((before * uncapped).sum() / size), float(cap))]
    for scale, limit in tried:
        if _relative_error(_finish(raw, scale, limit), final, off) <= allowed:
            return scale, limit
    msg = (
        "what this model does to its logits after the unembedding is neither a "
        "constant factor nor the soft cap of its config, so it cannot be done to the "
        "logits of other layers"
    )
    raise ModelError(msg)


def _relative_error(found: Tensor, final: Tensor, off: Tensor) -> float:
    on = ~off.to(found.device)
    final = final.to(found.device)
    error = (found - final)[:, on].abs().max() / final[:, on].abs().max().clamp(min=1)
    return float(error)


# ---- The residual stream at some places, as it leaves each layer of a run.


@dataclass
class StreamRun:
    """What a run's residual stream was at some places.

    Attributes:
        points: What enters the first layer, then what leaves each layer,
            `[place d_model]` each.
        raw: What the output embedding returned where the readout reads.
        final: The logits there.
        donors: Donor head of each patched layer, by batch item.
    """

    points: list[Float[Tensor, "place d_model"]] = field(default_factory=list)
    raw: Tensor = field(default_factory=lambda: torch.zeros(0))
    final: Tensor = field(default_factory=lambda: torch.zeros(0))
    donors: dict[int, Tensor] = field(default_factory=dict)


def _own(hook: Callable[..., None]) -> Callable[..., None]:
    """Call a hook in this thread alone: another may read with its module meanwhile."""
    ours = threading.get_ident()

    def call(*given: Any) -> None:
        if threading.get_ident() == ours:
            hook(*given)

    return call


@torch.no_grad()
def trace_streams(
    model: Any,
    case: Case,
    patch: Intervention | None,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> StreamRun:
    """Run a case, plain or patched, and keep its residual stream at some places.

    Args:
        model: An LVLM.
        case: The inputs, and where logits are read.
        patch: Settings of a patched run.
        items: The batch item of each place.
        positions: Its position.

    Returns:
        The streams, on the model's device.
    """
    root: nn.Module = model._module
    done = StreamRun()
    kept, read_at = keep_logits(model, case.readout.positions)
    read = case.readout.positions
    if read_at is not None:
        read = torch.searchsorted(read_at.cpu(), read)

    def take(stream: Tensor) -> Tensor:
        return stream[items.to(stream.device), positions.to(stream.device)]

    def take_read(logits: Tensor) -> Tensor:
        rows = case.readout.rows.to(logits.device)
        return logits[rows, read.to(logits.device)]

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        del module
        done.points.append(take(args[0] if args else kwargs["hidden_states"]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        done.points.append(take(first_output(output)))

    def unembed(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        done.raw = take_read(output)

    layers = list(root.get_submodule(model.anatomy.layers).children())
    head = root.get_submodule(str(model.anatomy.unembedding))
    # A plain run stops at no attention call; layers=() walks past all of them.
    patched = () if patch is None else [site.layer for site in model.check(patch)]
    learned: dict[int, Any] = {}
    with model.alone(), contextlib.ExitStack() as hooks:
        for handle in (
            layers[0].register_forward_pre_hook(_own(enter), with_kwargs=True),
            head.register_forward_hook(_own(unembed)),
            *(layer.register_forward_hook(_own(leave)) for layer in layers),
        ):
            hooks.callback(handle.remove)
        with model.trace(**case.inputs, **kept, use_cache=False):
            for point in attention_calls(
                model,
                patch,
                layers=patched,
                prompt_mask=case.prompt_mask,
                follows_streams=True,
            ):
                learned[point.layer] = point.kept
            final = model.output.logits.save()
    done.final = take_read(final)
    done.donors = donors_by_layer(learned)
    return done
