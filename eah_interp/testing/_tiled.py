"""Idefics3 and InternVL: tiles beside a view of the whole picture."""

import transformers as hf
from transformers import PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.processors import drop_video
from eah_interp.testing._facts import (
    Family,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
    write_chat_template,
)

IDEFICS_CHAT = write_chat_template(
    user="User:", assistant="Assistant:", image="<image>", close="<end_of_utterance>\n"
)
INTERNVL_CHAT = write_chat_template(
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    image="<IMG_CONTEXT>\n",
    close="<|im_end|>\n",
)


def _configure_idefics3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Idefics3Config(
        vision_config=vision_settings(),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        scale_factor=2,
    )


def _process_idefics3(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 32}
    )
    return hf.Idefics3Processor(
        pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS_CHAT
    )


def _configure_internvl(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    vision = vision_settings(image_size=[32, 32], patch_size=[8, 8])
    return hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _process_internvl(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6
    )
    return drop_video(hf.InternVLProcessor)(
        pictures, tokenizer, image_seq_length=4, chat_template=INTERNVL_CHAT
    )


IDEFICS3 = Family(
    "idefics3",
    "Idefics3ForConditionalGeneration",
    _configure_idefics3,
    specials=(
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    ),
    build_processor=_process_idefics3,
    notes="tiles of 2 x 2 tokens, each after its marker, then the whole picture",
)
INTERNVL = Family(
    "internvl",
    "InternVLForConditionalGeneration",
    _configure_internvl,
    specials=(
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        "<video>",
        "<|im_start|>",
        "<|im_end|>",
    ),
    named={
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
    add_bos=False,
    placeholder="<IMG_CONTEXT>",
    build_processor=_process_internvl,
    notes="up to 6 tiles of 2 x 2 tokens in one run, the whole picture last",
)
