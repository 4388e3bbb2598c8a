"""Random weights under which attention heads differ and logits are not all alike."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

QUERY_KEY_GAIN = 1.7
LOGIT_SCALE = 3.0
_QUERY_KEY = ("q_proj", "k_proj", "qkv_proj", "qkv", "q_b_proj", "kv_b_proj")


@torch.no_grad()
def scale_weights(model: PreTrainedModel, *, seed: int) -> None:
    """Refill the weights in place so that activations, scores and logits have size.

    A Hugging Face initialisation (standard deviation 0.02) of a narrow model gives
    attention that is even and the same in every head, and logits that are nearly zero,
    which would let a wrong patch pass a test. Here a linear map keeps the variance of
    its input, queries and keys are `QUERY_KEY_GAIN` times larger, and logits have a
    standard deviation near `LOGIT_SCALE` (near 1 where the unembedding is tied to the
    embedding). Norm weights keep their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    unembedding = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = unembedding is not None and unembedding.weight is embedding.weight
    seen: set[int] = set()
    for name, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            std = _choose_std(name, module, part, parameter)
            if parameter is embedding.weight:
                # a tied, strong embedding would only repeat the last token
                std = 1.0 / math.sqrt(parameter.shape[1]) if tied else 1.0
            elif unembedding is not None and parameter is unembedding.weight:
                std = LOGIT_SCALE / math.sqrt(parameter.shape[1])
            if std is not None:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(std * noise)


def _choose_std(
    name: str, module: nn.Module, part: str, parameter: nn.Parameter
) -> float | None:
    """Return the standard deviation to draw a parameter with, None to keep it."""
    if isinstance(module, nn.Embedding):
        return 1.0
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        if part == "bias":
            return 0.1
        gain = QUERY_KEY_GAIN if name.rpartition(".")[2] in _QUERY_KEY else 1.0
        return gain / math.sqrt(parameter[0].numel())
    if part == "sinks":  # one logit per head: as wide as the attention logits
        return QUERY_KEY_GAIN
    if parameter.ndim > 1:  # position tables, expert weights
        return 1.0 / math.sqrt(parameter.shape[-1])
    return None
