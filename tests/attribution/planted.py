"""A hand-built circuit: one head copies what a picture shows to the answer."""

import torch

import eah_interp as eah
from eah_interp.testing import tiny_lvlm, tiny_processor

COPIES = (1, 2)
"""Layer and head that copies the picture's direction to the object's logit."""

IRRELEVANT = (1, 0)
"""A head that reads the same, and writes nothing."""

OBJECT = " cat"


def build_planted():
    """Build a LLaVA in which all that reaches the object's logit is one head's doing.

    Image tokens are multiples of one direction, which no word has. Attention is even.
    Head `COPIES` reads that direction and writes the object's unembedding; all other
    heads write nothing, and MLPs write nothing.
    """
    hf_model = tiny_lvlm("llava", n_layers=3, n_heads=4, d_head=8)
    processor = tiny_processor("llava")
    (token,) = processor.tokenizer(OBJECT, add_special_tokens=False)["input_ids"][-1:]
    decoder = hf_model.model.language_model
    shown = 0  # the direction of pictures in the residual stream
    layer, head = COPIES
    with torch.no_grad():
        decoder.embed_tokens.weight[:, shown] = 0
        projector = hf_model.model.multi_modal_projector
        projector.linear_2.weight[1:] = 0
        projector.linear_2.bias.zero_()
        hf_model.lm_head.weight[:, shown] = 0
        for index, block in enumerate(decoder.layers):
            attention = block.self_attn
            block.mlp.down_proj.weight.zero_()
            attention.q_proj.weight.zero_()
            attention.o_proj.weight.zero_()
            block.input_layernorm.weight.fill_(1)
            if index == layer:
                rows = slice(8 * head, 8 * head + 8)
                attention.v_proj.weight[rows] = 0
                attention.v_proj.weight[8 * head, shown] = 1
                word = hf_model.lm_head.weight[token]
                attention.o_proj.weight[:, 8 * head] = word / word.norm()
    return eah.wrap(hf_model, processor)
