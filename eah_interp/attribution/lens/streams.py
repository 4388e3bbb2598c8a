"""The residual stream at some places, as it leaves each layer of a run."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eah_interp.attribution.cases.places import keep_logits
from eah_interp.attribution.cases.pose import Case
from eah_interp.interventions.donation import apply_patch, plan_patch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import prompt_of_worker


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


@torch.no_grad()
def trace_streams(
    model: Any,
    case: Case,
    eah: EAH | None,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> StreamRun:
    """Run a case, plain or patched, and keep its residual stream at some places.

    Args:
        model: An LVLM.
        case: The inputs, and where logits are read.
        eah: Settings of a patched run.
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
        done.points.append(take(output[0] if isinstance(output, tuple) else output))

    def unembed(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        done.raw = take_read(output)

    layers = list(root.get_submodule(model.anatomy.layers).children())
    handles: list[Any] = [
        layers[0].register_forward_pre_hook(enter, with_kwargs=True),
        root.get_submodule(str(model.anatomy.unembedding)).register_forward_hook(
            unembed
        ),
        *(layer.register_forward_hook(leave) for layer in layers),
    ]
    try:
        with model.trace(**case.inputs, **kept, use_cache=False):
            prompt = prompt_of_worker(model).limit(case.prompt_mask)
            for site in walk_sites(model.anatomy):
                if eah is not None and site.layer in eah.layers:
                    operation = attention_operation(model, site)
                    call = AttentionCall.parse(operation.inputs)
                    tokens = prompt.fit(call)
                    patch = plan_patch(eah, call, tokens, layer=site.layer)
                    apply_patch(eah, operation, call, tokens, patch)
                    done.donors[site.layer] = patch.donors.cpu()
            final = model.output.logits.save()
    finally:
        for handle in handles:
            handle.remove()
    done.final = take_read(final)
    return done
