"""Models that this package refuses, to test that it says so.

Families: llama, blip2_t5, mllama.
"""

import transformers as hf
from transformers import PreTrainedConfig

from eah_interp.testing._facts import (
    Family,
    Size,
    Tokenizer,
    name_ids,
    rope_settings,
    text_settings,
)


def _configure_llama(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.LlamaConfig(**text_settings(size, tokenizer))


def _configure_blip2_t5(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    text = hf.T5Config(
        d_model=size.d_model,
        d_kv=size.d_head,
        d_ff=2 * size.d_model,
        num_layers=size.n_layers,
        num_decoder_layers=size.n_layers,
        num_heads=size.n_heads,
        vocab_size=256,
        pad_token_id=0,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return hf.Blip2Config(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        qformer_config={**tower, "encoder_hidden_size": 32, "vocab_size": 256},
        text_config=text,
        num_query_tokens=4,
        **name_ids(tokenizer, image_token_index="<image>"),
    )


def _configure_mllama(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "intermediate_size": 64,
        "vision_output_dim": 64,
        "image_size": 32,
        "patch_size": 8,
        "intermediate_layers_indices": [1],
    }
    text = text_settings(
        size,
        tokenizer,
        cross_attention_layers=[1],
        rope_parameters=rope_settings(),
    )
    del text["head_dim"]
    return hf.MllamaConfig(
        vision_config=vision,
        text_config=text,
        **name_ids(tokenizer, image_token_index="<image>"),
    )


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    _configure_llama,
    specials=(),
    named={},
    placeholder="",
    no_processor="a text-only model has a tokenizer and no processor",
    refused="it has no image tokens",
)
BLIP2_T5 = Family(
    "blip2_t5",
    "Blip2ForConditionalGeneration",
    _configure_blip2_t5,
    no_processor="the model is here only to be refused",
    refused="it is an encoder-decoder: its image is not in the decoder's prompt",
)
MLLAMA = Family(
    "mllama",
    "MllamaForConditionalGeneration",
    _configure_mllama,
    no_processor="the model is here only to be refused",
    refused="its image enters through cross-attention layers, not image tokens",
)
