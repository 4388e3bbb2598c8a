"""Forward passes whose gradients at head outputs are wanted, and nobody else's."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eah_interp._types import HeadOutputs
from eah_interp.attribution.cases.places import keep_logits
from eah_interp.attribution.cases.pose import Case
from eah_interp.attribution.cases.readouts import TargetValues
from eah_interp.attribution.patching.recording import Recording
from eah_interp.errors import EAHError, UnsupportedError
from eah_interp.interventions.donation import apply_patch, plan_patch
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import prompt_of_worker

_BACKWARD = re.compile(
    "backward|derivative|requires? grad|grad_fn|inference tensor|supports inference",
    re.IGNORECASE,
)
"""What errors say that are about gradients."""


@dataclass(frozen=True)
class GradientRun:
    """One run of one item, with its graph from the first head outputs on.

    Attributes:
        recording: What it passed on at its attention calls, cut off its graph.
        values: Its targets, with gradients.
        heads: Each layer's head outputs, `[1 query head d_value]`, with gradients.
    """

    recording: Recording
    values: TargetValues
    heads: dict[int, HeadOutputs]

    def gradients(self, target: int) -> dict[int, HeadOutputs]:
        """Run one backward pass: a target's gradient at every layer's head outputs.

        Where it is called `with with_gradients(model)`, what cannot be differentiated
        is refused by name.

        Raises:
            UnsupportedError: If the target does not depend on a layer's heads.
        """
        last = target == len(self.values) - 1
        found = torch.autograd.grad(
            self.values[target],
            list(self.heads.values()),
            retain_graph=not last,
            allow_unused=True,
        )
        by_layer = dict(zip(self.heads, found, strict=True))
        lost = [layer for layer, gradient in by_layer.items() if gradient is None]
        if lost:
            msg = (
                f"no gradient reaches the heads of layers {lost}: what comes after "
                "them is not differentiable here; use patch_heads, which needs none"
            )
            raise UnsupportedError(msg)
        return by_layer


def run_with_gradients(model: Any, case: Case, eah: EAH | None) -> GradientRun:
    """Run one item and keep the graph from the first attention call's output on.

    The vision tower, the embedding and the first layer's queries, keys and values get
    no gradient. Donors are chosen without gradients; what they donate has them.

    Args:
        model: An LVLM that `check_gradients` took.
        case: One item.
        eah: Settings of a patched run.
    """
    kept, read_at = keep_logits(model, case.readout.positions)
    done = Recording(case, eah, torch.zeros(0))
    heads: dict[int, Tensor] = {}
    with with_gradients(model), model.trace(**case.inputs, **kept, use_cache=False):
        prompt = prompt_of_worker(model).limit(case.prompt_mask)
        for site in walk_sites(model.anatomy):
            operation = attention_operation(model, site)
            call = AttentionCall.parse(operation.inputs)
            done.calls[site.layer] = call.detach()
            done.prompt = prompt.fit(call)
            if eah is not None and site.layer in eah.layers:
                patch = plan_patch(eah, call, done.prompt, layer=site.layer)
                apply_patch(eah, operation, call, done.prompt, patch)
                done.patches[site.layer] = patch
            output = operation.output
            heads[site.layer] = output[0]
            if not output[0].requires_grad:
                heads[site.layer] = output[0].detach().requires_grad_()
                operation.output = (heads[site.layer], *output[1:])
            done.heads[site.layer] = heads[site.layer].detach()
        final = model.output.logits.save()
    with torch.enable_grad():
        values = case.readout.values(final, places=read_at)
    done.values = values.detach()
    return GradientRun(done, values, heads)


@contextlib.contextmanager
def with_gradients(model: Any) -> Iterator[None]:
    """Let graphs grow from what is made to require gradients, not from weights.

    So no graph is kept before the first head output, nor for any weight. The weights
    are as they were afterwards.

    Raises:
        UnsupportedError: If the model cannot be differentiated in the block.
    """
    root: nn.Module = model._module
    trained = [p for p in root.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        with torch.enable_grad():
            yield
    except EAHError:
        raise
    except RuntimeError as error:
        if not _BACKWARD.search(str(error)):
            raise
        text = root.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        first = str(error).strip().splitlines()[0].rstrip(".")
        msg = (
            f"{type(root).__name__} cannot be differentiated with "
            f"attn_implementation={text._attn_implementation!r} on {model.device}, "
            f"{root.dtype}: {first}. Expected a backward pass of every operation: load "
            "it with attn_implementation='sdpa' or 'eager', or use patch_heads, which "
            "needs none"
        )
        raise UnsupportedError(msg) from error
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def check_gradients(model: Any) -> None:
    """Refuse a model that has no gradients, before any forward pass.

    Raises:
        UnsupportedError: If its weights are quantised, or made in inference mode, or
            if inference mode is on.
    """
    root: nn.Module = model._module
    tensors = [*root.named_parameters(), *root.named_buffers()]
    frozen = [name for name, tensor in tensors if tensor.is_inference()]
    if torch.is_inference_mode_enabled() or frozen:
        where = "this runs" if not frozen else f"{frozen[0]} was made"
        msg = (
            f"gradients were switched off for good: {where} in torch.inference_mode(); "
            "expected torch.no_grad() at most. Leave that block (and load the model "
            "outside it), or use patch_heads, which needs no gradients"
        )
        raise UnsupportedError(msg)
    for name, module in root.named_modules():
        found = _quantised(module)
        if found:
            msg = (
                f"{name} ({type(module).__name__}) has quantised weights ({found}), "
                "whose gradients are missing or would be silently wrong: expected "
                "float32, float16 or bfloat16. Load the model without quantisation, "
                "or use patch_heads, which needs no gradients"
            )
            raise UnsupportedError(msg)


def _quantised(module: nn.Module) -> str:
    """Say how a module's weights are quantised; nothing if they are not."""
    for parameter in module.parameters(recurse=False):
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            return str(parameter.dtype).removeprefix("torch.")
    is_linear = hasattr(module, "in_features") or hasattr(module, "infeatures")
    has_none = not isinstance(getattr(module, "weight", None), Tensor)
    # Aria's projector has a width, and linear layers of its own
    holds_others = any(type(child) is nn.Linear for child in module.modules())
    if is_linear and has_none and not holds_others:
        return "packed"
    return ""
