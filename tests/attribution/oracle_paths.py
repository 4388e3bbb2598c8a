"""Path patching by hand: one edge at a time, whole forward passes of plain models.

Written from the definition, in plain transformers with plain hooks. What a sender
changes is read off the stream that leaves its layer while the rest of the layer stands
still; what a receiver makes of it, off a pass whose stream at its layer is set; and
the effect, off a pass in which the receiver has that.
"""

import functools
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.attribution.oracle_patching import replaced_attention
from tests.oracle_forward import decoder_attentions

MLPS = ("mlp", "feed_forward", "ffn")
MIXERS = ("self_attn", "linear_attn", "conv")


@dataclass
class Pass:
    """What one forward pass had."""

    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)  # [1 query head d]
    blocks: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


def first_of(value):
    return value[0] if isinstance(value, tuple) else value


class PathsByHand:
    """One item of a plain model, and another run whose outputs senders take."""

    def __init__(self, hf_model: nn.Module, anatomy, case, inputs, others):
        self.hf_model, self.anatomy, self.case, self.inputs = (
            hf_model,
            anatomy,
            case,
            inputs,
        )
        self.layers = hf_model.get_submodule(anatomy.layers)
        self.clean = self.forward()
        self.source = self.forward(inputs=others)
        self.value = case.readout.values(self.clean.logits)
        self.source_value = case.readout.values(self.source.logits)

    def block_of(self, layer, names=MLPS):
        found = [name for name in names if hasattr(self.layers[layer], name)]
        return f"{layer}.{found[0]}"

    def forward(  # noqa: C901 - one pass, and all that may be set in it
        self,
        *,
        inputs=None,
        streams=None,
        heads=None,
        blocks=None,
        calls=None,
        end=None,
    ) -> Pass:
        """Run once, with some things set to what is given."""
        seen = Pass()
        streams, heads, blocks, calls = (
            x or {} for x in (streams, heads, blocks, calls)
        )
        layer_of = {id(m): n for n, m in decoder_attentions(self.hf_model).items()}

        def attend(plain, module, query, key, value, attention_mask, **settings):
            layer = layer_of.get(id(module))
            if layer is None:
                return plain(module, query, key, value, attention_mask, **settings)
            given = {"q": query.clone(), "k": key.clone(), "v": value.clone()}
            seen.calls[layer] = {name: tensor.clone() for name, tensor in given.items()}
            for (at, name, index), tensor in calls.items():
                if at == layer:
                    given[name][:, index] = tensor
            output, pattern = plain(module, *given.values(), attention_mask, **settings)
            output = output.clone()
            for (at, head), tensor in heads.items():
                if at == layer:
                    output[:, :, head] = tensor
            seen.heads[layer] = output
            return output, pattern

        def enter(layer):
            def hook(module, args, kwargs):
                stream = args[0] if args else kwargs["hidden_states"]
                stream = streams.get(layer, stream)
                seen.entering[layer] = stream
                if args:
                    return (stream, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": stream}

            return hook

        def leave(layer):
            def hook(module, args, output):
                seen.leaving[layer] = first_of(output)

            return hook

        def block(name):
            def hook(module, args, output):
                own = first_of(output)
                if name in blocks:
                    own = blocks[name].reshape(own.shape)
                seen.blocks[name] = own
                return (own, *output[1:]) if isinstance(output, tuple) else own

            return hook

        norm = self.hf_model.get_submodule(self.anatomy.final_norm)
        with ExitStack() as stack, torch.no_grad():
            for n, layer in enumerate(self.layers):
                kwargs = {"with_kwargs": True}
                hooks = [
                    layer.register_forward_pre_hook(enter(n), **kwargs),
                    layer.register_forward_hook(leave(n)),
                ]
                hooks += [
                    child.register_forward_hook(block(f"{n}.{name}"))
                    for name, child in layer.named_children()
                    if name in (*MLPS, *MIXERS)
                ]
                for handle in hooks:
                    stack.callback(handle.remove)
            if end is not None:
                handle = norm.register_forward_pre_hook(
                    lambda _, args: (end, *args[1:])
                )
                stack.callback(handle.remove)
            last = norm.register_forward_pre_hook(
                lambda _, args: seen.entering.__setitem__(len(self.layers), args[0])
            )
            stack.callback(last.remove)
            stack.enter_context(replaced_attention(self.hf_model, attend))
            inputs = self.inputs if inputs is None else inputs
            seen.logits = self.hf_model(**inputs, use_cache=False).logits
        return seen

    def set_senders(self, senders, layer):
        """Say what a pass is to set for the senders of one layer."""
        heads, blocks = {}, {}
        for kind, at, head in senders:
            if at != layer:
                continue
            if kind == "head":
                heads[at, head] = self.source.heads[at][:, :, head]
            else:
                name = self.block_of(at, MLPS if kind == "mlp" else (kind,))
                blocks[name] = self.source.blocks[name]
        return heads, blocks

    def change(self, senders, *, before):
        """Read what senders of layers before one change in the stream there."""
        total = torch.zeros_like(self.clean.entering[0])
        for layer in sorted({at for _, at, _ in senders if at < before}):
            total = total + self.change_at(tuple(senders), layer)
        return total

    @functools.cache  # noqa: B019 - one item's, and gone with it
    def change_at(self, senders, layer):
        if layer < 0:
            return self.source.entering[0] - self.clean.entering[0]
        heads, blocks = self.set_senders(senders, layer)
        still = self.block_of(layer)
        blocks = {still: self.clean.blocks[still], **blocks}
        run = self.forward(heads=heads, blocks=blocks)
        return run.leaving[layer] - self.clean.leaving[layer]

    @functools.cache  # noqa: B019
    def read(self, senders, layer, *, frozen):
        """Run with the stream of one layer changed, its attention frozen or not."""
        stream = self.clean.entering[layer] + self.change(senders, before=layer)
        if not frozen:
            return self.forward(streams={layer: stream})
        heads, own = self.set_senders(senders, layer)
        still = self.block_of(layer, MIXERS)
        if not heads and still not in own:  # also gates, which read the stream
            own[still] = self.clean.blocks[still]
        return self.forward(streams={layer: stream}, heads=heads, blocks=own)

    def effect(self, senders, receivers):
        """Measure one edge: what its receivers make of its senders' change."""
        senders, calls, blocks = tuple(senders), {}, {}
        for what, layer, index in receivers:
            if what == "logit":
                end = self.clean.entering[layer] + self.change(senders, before=layer)
                logits = self.forward(end=end).logits
                return self.case.readout.values(logits) - self.value
            run = self.read(senders, layer, frozen=what == "mlp")
            if what == "mlp":
                name = self.block_of(layer)
                blocks[name] = run.blocks[name]
            else:
                calls[layer, what, index] = run.calls[layer][what][:, index]
        run = self.forward(calls=calls, blocks=blocks)
        return self.case.readout.values(run.logits) - self.value
