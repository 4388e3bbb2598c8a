"""What decoder layers add to the stream is found in their source, or not at all."""

import pytest
import torch
import transformers as hf
from torch import nn

from eah_interp.lvlm.writers import UNKNOWN, Writers, find_writers
from eah_interp.testing import tiny_lvlm

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}

DECODERS = {
    # scaled by a number on its way
    "Granite": (UNKNOWN, {}),
    # norms behind, none before
    "Olmo2": (
        Writers("post_attention_layernorm", "post_feedforward_layernorm", None, True),
        {},
    ),
    # dropout between
    "Phi3": (Writers("self_attn", "mlp", None, True), {}),
    # attention and MLP side by side
    "Cohere": (Writers("self_attn", "mlp", None, True, side_by_side=True), {}),
    "StableLm": (
        Writers("self_attn", "mlp", None, True, side_by_side=True),
        {"use_parallel_residual": True},
    ),
    # experts: a tuple, or a module beside another
    "Mixtral": (Writers("self_attn", "mlp", None, True), {"num_local_experts": 2}),
}


@pytest.mark.parametrize("name", DECODERS)
def test_other_decoders_are_followed_too(name):
    expected, changes = DECODERS[name]
    config = getattr(hf, f"{name}Config")(**{**TINY, **changes})
    layer = getattr(hf, f"{name}Model")(config).layers[0]
    assert find_writers(layer, attention="self_attn") == expected


def test_experts_beside_the_mlp_are_joined_by_the_norm_after_both():
    layer = tiny_lvlm("gemma4").model.language_model.layers[0]
    layer.enable_moe_block = True
    names = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "router")
    for child in (*names, "experts", "post_feedforward_layernorm_2"):
        setattr(layer, child, nn.Linear(1, 1))
    assert find_writers(layer, attention="self_attn").mlp == (
        "post_feedforward_layernorm"
    )


class Layer(nn.Module):
    """A layer whose forward a test writes."""

    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp, self.norm = (nn.Linear(4, 4) for _ in range(3))
        self.flag = True


class Plain(Layer):
    def forward(self, hidden_states, other=None):
        if other is not None:
            hidden_states = hidden_states * 0
        attended = self.self_attn(self.norm(hidden_states))
        hidden_states = hidden_states + attended if self.flag else attended
        return (hidden_states + self.mlp(hidden_states).view(1, 4),)


class Twice(Layer):
    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(hidden_states)
        hidden_states = hidden_states + self.norm(hidden_states)
        return hidden_states + self.norm(self.mlp(hidden_states))


class CrossAttention(nn.Linear):
    """Named as what it stands for."""


class Crossed(Layer):
    def __init__(self):
        super().__init__()
        self.cross = CrossAttention(4, 4)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(hidden_states)
        hidden_states = hidden_states + self.cross(hidden_states)
        return hidden_states + self.mlp(hidden_states)


class Looped(Layer):
    def forward(self, hidden_states):
        for module in (self.self_attn, self.mlp):
            hidden_states = hidden_states + module(hidden_states)
        return hidden_states


class InPlace(Layer):
    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(hidden_states)
        hidden_states.add_(1)
        return hidden_states + self.mlp(hidden_states)


class ByValue(Layer):
    def forward(self, hidden_states):
        attended = self.self_attn(hidden_states)
        if attended.sum() > 0:
            attended = attended * 2
        return hidden_states + attended + self.mlp(hidden_states)


class Biased(Layer):
    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(hidden_states) + self.mlp.bias
        return hidden_states + self.mlp(hidden_states)


class Gated(Layer):
    def forward(self, hidden_states):
        attended = torch.tanh(self.self_attn(hidden_states))
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(hidden_states)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Plain, Writers("self_attn", "mlp", None, True)),
        (Twice, Writers("self_attn", None)),  # three summands, and a module used twice
        (Crossed, Writers("self_attn", "mlp")),
        (Looped, UNKNOWN),
        (InPlace, UNKNOWN),
        (ByValue, UNKNOWN),  # what is done depends on the numbers
        (Biased, Writers("self_attn", "mlp")),  # they are, but not alone
        (Gated, Writers(None, "mlp")),
    ],
)
def test_what_a_source_does_not_tell_is_not_guessed(kind, expected):
    assert find_writers(kind(), attention="self_attn") == expected


def test_a_layer_without_source_is_unknown():
    layer = Layer()
    exec("def forward(self, x):\n    return x + self.self_attn(x)", scope := {})
    layer.__class__ = type("Hidden", (Layer,), {"forward": scope["forward"]})
    assert find_writers(layer, attention="self_attn") == UNKNOWN
