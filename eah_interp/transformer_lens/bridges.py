"""From an LVLM to a TransformerBridge, and what its hook points really do."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eah_interp.arguments import by_name
from eah_interp.errors import ExtraMissingError, ModelError
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.weights import check_plain


@by_name
def to_bridge(model: LVLM) -> Any:
    """Build a `TransformerBridge` that shares an LVLM's weights.

    The bridge gets a module tree of its own (it replaces submodules and switches to
    eager attention), but the parameters are the very same tensors.

    Args:
        model: The LVLM, weights loaded.

    Returns:
        The bridge.

    Raises:
        ExtraMissingError: If TransformerLens is not installed.
        ModelError: If TransformerLens has no bridge for this model.
        UnsupportedError: If its weights are quantised, hold an adapter, or are kept off
            the device.
    """
    try:
        from transformer_lens.model_bridge import sources
        from transformer_lens.model_bridge.sources import _bridge_builder
    except ImportError as error:
        msg = f"needs TransformerLens ({error}): pip install 'eah-interp[lens]'"
        raise ExtraMissingError(msg) from error
    model.dispatch()
    original = model._module
    check_plain(original, for_what="a TransformerBridge")
    twin = _twin(original)
    kind = type(original).__name__
    build = getattr(
        sources,
        "build_bridge_from_module",
        _bridge_builder.build_bridge_from_module,
    )
    tokenizer = model.tokenizer
    if "name_or_path" not in getattr(tokenizer, "init_kwargs", {}):
        tokenizer = None  # TransformerLens reads it again from where it came from
    try:
        return build(twin, kind, hf_config=twin.config, tokenizer=tokenizer)
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        msg = (
            f"TransformerLens has no bridge for {kind} here ({error}); use nnsight: "
            "model.trace with eah_interp.intervene works on it"
        )
        raise ModelError(msg) from error


def _twin(original: nn.Module) -> nn.Module:
    """Build the same module tree around the same parameter tensors."""
    config: Any = copy.deepcopy(original.config)
    config.architectures = [type(original).__name__]
    with torch.device("meta"):
        twin: Any = type(original)._from_config(config, attn_implementation="eager")  # type: ignore[attr-defined]
    twin.load_state_dict(original.state_dict(keep_vars=True), assign=True, strict=False)
    buffers = dict(original.named_buffers())
    for path, _ in list(twin.named_buffers()):
        owner, _, name = path.rpartition(".")
        twin.get_submodule(owner)._buffers[name] = buffers[path]
    twin.tie_weights()
    left = [name for name, value in twin.named_parameters() if value.is_meta]
    if left:
        msg = f"parameters {left[:3]} of the model have no weights to share"
        raise ModelError(msg)
    return twin.eval()  # type: ignore[no-any-return]


def pattern_name(layer: int) -> str:
    """Name the hook point of a layer's pattern."""
    return f"blocks.{layer}.attn.hook_pattern"


def find_attention(bridge: Any, layer: int) -> Any:
    """Find a layer's attention bridge.

    Raises:
        ModelError: If the layer does not exist or has no attention pattern.
    """
    blocks = getattr(bridge, "blocks", None)
    if blocks is None or not 0 <= layer < len(blocks):
        n_layers = 0 if blocks is None else len(blocks)
        msg = f"layer {layer} does not exist: the bridge has layers 0 to {n_layers - 1}"
        raise ModelError(msg)
    if pattern_name(layer) not in bridge.hook_dict:
        msg = (
            f"layer {layer} has no attention pattern to patch (no "
            f"{pattern_name(layer)}): name layers with full attention"
        )
        raise ModelError(msg)
    return blocks[layer].attn


def run(bridge: Any, inputs: Mapping[str, Any], *, hooks: Any, until: int) -> None:
    """Run a bridge on an encoding up to and including a layer, without gradients."""
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        bridge.run_with_hooks(
            inputs["input_ids"], fwd_hooks=hooks, stop_at_layer=until + 1, **rest
        )


def pattern_flows(bridge: Any, layer: int, inputs: Mapping[str, Any]) -> bool:
    """Whether what a hook writes to a layer's pattern reaches the head outputs.

    On some bridges the pattern is shown after the fact, and edits are discarded with
    a warning. A pattern of zeros has to give head outputs of zero.

    Raises:
        ModelError: If the pattern is never shown.
    """
    seen: list[bool] = []
    outputs: list[bool] = []

    def empty(pattern: Tensor, hook: Any) -> Tensor:
        del hook
        seen.append(True)
        return torch.zeros_like(pattern)

    def look(z: Tensor, hook: Any) -> None:
        del hook
        outputs.append(bool((z == 0).all()))

    hooks = [(pattern_name(layer), empty), (f"blocks.{layer}.attn.o.hook_in", look)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(bridge, inputs, hooks=hooks, until=layer)
    if not seen or not outputs:
        msg = (
            f"the bridge shows no pattern or head output in layer {layer}: "
            "use eager attention, or nnsight (eah_interp.intervene)"
        )
        raise ModelError(msg)
    return all(outputs)
