"""Tiles beside a view of the whole image.

Families: idefics3, smolvlm, internvl, internvl_gpt_oss, aya_vision, cohere2_vision,
ovis2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import transformers as hf
from PIL import Image
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    PreTrainedConfig,
    ProcessorMixin,
)

from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    Family,
    ImageRows,
    Size,
    Tokenizer,
    flatten,
    name_ids,
    rope_settings,
    siglip_settings,
    text_settings,
    vision_settings,
    write_chat_template,
    write_chatml,
    write_runs,
)

SIDE = 32
"""Pixels along a side of a tile."""

MAX_TILES = 6


def _build_tiler(name: str = "GotOcr2ImageProcessorPil") -> BaseImageProcessor:
    """Build an image processor that cuts an image in at most `MAX_TILES` tiles."""
    tiler: BaseImageProcessor = getattr(hf, name)(
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        max_patches=MAX_TILES,
    )
    return tiler


# ---- Idefics3 and SmolVLM.

IDEFICS_CHAT = write_chat_template(
    user="User:", assistant="Assistant:", image="<image>", close="<end_of_utterance>\n"
)


def _set_idefics(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vision_config": vision_settings(),
        "text_config": hf.LlamaConfig(**text_settings(size, tokenizer)),
        "scale_factor": 2,
        **name_ids(tokenizer, image_token_id="<image>"),
    }


def _configure_idefics3(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Idefics3Config(pad_token_id=0, **_set_idefics(size, tokenizer))


def _configure_smolvlm(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.SmolVLMConfig(**_set_idefics(size, tokenizer))


def _process_idefics3(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": SIDE}
    )
    return hf.Idefics3Processor(
        image_processor, tokenizer, image_seq_len=4, chat_template=IDEFICS_CHAT
    )


def _encode_smolvlm(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what SmolVLMProcessor does: a marker before each tile, the whole last."""
    image_processor = hf.SmolVLMImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": SIDE}
    )
    nested = [list(row) for row in images if row]
    encoded = image_processor(nested, return_tensors="pt", return_row_col_info=True)
    grids = zip(
        (count for row in encoded.pop("rows") for count in row),
        (count for row in encoded.pop("cols") for count in row),
        strict=True,
    )
    fake = "<fake_token_around_image>"
    runs = []
    for rows, columns in grids:
        places = [(r + 1, c + 1) for r in range(rows) for c in range(columns)]
        names = [f"<row_{row}_col_{column}>" for row, column in places]
        tiles = (fake + name + "<image>" * 4 for name in [*names, "<global-img>"])
        runs.append("".join(tiles) + fake)
    words = write_runs(tokenizer, images, prompts, placeholder="<image>", runs=runs)
    return BatchFeature({**words, **encoded})


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
    notes="tiles of 2 x 2 tokens, each after its marker, then the whole image",
)

SMOLVLM = Family(
    "smolvlm",
    "SmolVLMForConditionalGeneration",
    _configure_smolvlm,
    specials=IDEFICS3.specials,
    no_processor="SmolVLMProcessor needs num2words",
    encode=_encode_smolvlm,
    notes="as Idefics3",
)


# ---- InternVL, on Qwen2 and on gpt-oss.


def _join_internvl(text: PreTrainedConfig, tokenizer: Tokenizer) -> PreTrainedConfig:
    """Put InternVL's tower before a decoder."""
    return hf.InternVLConfig(
        vision_config=vision_settings(image_size=[SIDE, SIDE], patch_size=[8, 8]),
        text_config=text,
        image_seq_length=4,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )


def _configure_internvl(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = hf.Qwen2Config(**text_settings(size, tokenizer))
    return _join_internvl(text, tokenizer)


def _configure_internvl_gpt_oss(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        sliding_window=12,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=rope_settings(),
    )
    return _join_internvl(hf.GptOssConfig(**text), tokenizer)


def _process_internvl(tokenizer: Tokenizer) -> ProcessorMixin:
    return drop_video(hf.InternVLProcessor)(
        _build_tiler(),
        tokenizer,
        image_seq_length=4,
        chat_template=write_chatml("<IMG_CONTEXT>\n"),
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
    notes="up to 6 tiles of 2 x 2 tokens in one run, the whole image last",
)

INTERNVL_GPT_OSS = replace(
    INTERNVL,
    name="internvl_gpt_oss",
    build_config=_configure_internvl_gpt_oss,
    notes="InternVL on a gpt-oss decoder: each head has a learned sink, as a weight",
)


# ---- Aya Vision and Cohere2 Vision.

AYA_CHAT = write_chat_template(
    user="<|USER_TOKEN|>", assistant="<|CHATBOT_TOKEN|>", image="<image>"
)


def _set_cohere2(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a SigLIP tower, and a decoder of windows with RoPE and full layers."""
    text = text_settings(size, tokenizer, logit_scale=1.0, sliding_window=512)
    return {
        "vision_config": siglip_settings(),
        "text_config": hf.Cohere2Config(**text, tie_word_embeddings=False),
        "tie_word_embeddings": False,
    }


def _configure_aya(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    ids = name_ids(tokenizer, image_token_index="<|IMG_PATCH|>")
    return hf.AyaVisionConfig(**_set_cohere2(size, tokenizer), **ids)


def _configure_cohere2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Cohere2VisionConfig(
        alignment_intermediate_size=64,
        **_set_cohere2(size, tokenizer),
        **name_ids(tokenizer, image_token_id="<|IMG_PATCH|>"),
    )


def _process_aya(tokenizer: Tokenizer) -> ProcessorMixin:
    return hf.AyaVisionProcessor(
        _build_tiler(),
        tokenizer,
        patch_size=8,
        img_size=SIDE,
        downsample_factor=2,
        chat_template=AYA_CHAT,
    )


def _cut_cohere2(image: Image.Image) -> Iterator[Image.Image]:
    """Yield tiles of the grid that the image needs least enlarging for, then all."""
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, MAX_TILES + 1)
            for rows in range(1, MAX_TILES // columns + 1)
        ),
        key=lambda grid: grid[0] * grid[1],
    )
    scales = [
        min(columns * SIDE / image.width, rows * SIDE / image.height)
        for columns, rows in grids
    ]
    enlarging = [scale for scale in scales if scale >= 1]
    columns, rows = grids[scales.index(min(enlarging) if enlarging else max(scales))]
    canvas = image.resize((SIDE * columns, SIDE * rows), Image.Resampling.BICUBIC)
    for row in range(rows):
        for column in range(columns):
            left, top = SIDE * column, SIDE * row
            yield canvas.crop((left, top, left + SIDE, top + SIDE))
    if rows * columns > 1:
        yield image


def _encode_cohere2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Cohere2VisionProcessor does: tiles that each end with a line break."""
    tiles = [list(_cut_cohere2(image)) for image in flatten(images)]
    image_processor = hf.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    one = "<|IMG_PATCH|>" * 4 + "<|IMG_LINE_BREAK|>"
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<|IMG_PATCH|>",
        runs=["<|START_OF_IMG|>" + one * len(cut) + "<|END_OF_IMG|>" for cut in tiles],
    )
    flat = [tile for cut in tiles for tile in cut]
    return BatchFeature({**words, **image_processor(flat, return_tensors="pt")})


AYA_VISION = Family(
    "aya_vision",
    "AyaVisionForConditionalGeneration",
    _configure_aya,
    specials=(
        "<|IMG_PATCH|>",
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        *(f"TILE_{number}" for number in range(1, MAX_TILES + 1)),
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
    ),
    build_processor=_process_aya,
    notes="up to 6 tiles of 2 x 2 tokens, each after its marker, the whole last",
)

COHERE2_VISION = Family(
    "cohere2_vision",
    "Cohere2VisionForConditionalGeneration",
    _configure_cohere2,
    specials=(
        "<|IMG_PATCH|>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_LINE_BREAK|>",
    ),
    named={"image_token": "<|IMG_PATCH|>"},
    placeholder="<|IMG_PATCH|>",
    no_processor="Cohere2VisionImageProcessor needs torchvision",
    encode=_encode_cohere2,
    notes="up to 6 tiles of 2 x 2 tokens, each before a line break, the whole last",
)


# ---- Ovis2.

OVIS_INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def _configure_ovis2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer)
    indicators = tokenizer.convert_tokens_to_ids(list(OVIS_INDICATORS))
    return hf.Ovis2Config(
        vision_config={**vision_settings(), "vocab_size": 64, "hidden_stride": 2},
        text_config=hf.Qwen2Config(**text),
        visual_indicator_token_ids=indicators,
        vocab_size=text["vocab_size"],
        hidden_size=size.d_model,
        tie_word_embeddings=False,
        **name_ids(tokenizer, image_token_id="<IMG_ATOM>"),
    )


def _process_ovis2(tokenizer: Tokenizer) -> ProcessorMixin:
    return hf.Ovis2Processor(
        _build_tiler("Ovis2ImageProcessorPil"),
        tokenizer,
        image_seq_length=4,
        chat_template=write_chatml("<image>\n"),
    )


OVIS2 = Family(
    "ovis2",
    "Ovis2ForConditionalGeneration",
    _configure_ovis2,
    specials=("<IMG_ATOM>", "<image>", *OVIS_INDICATORS, "<|im_start|>", "<|im_end|>"),
    add_bos=False,
    build_processor=_process_ovis2,
    notes="the whole image, then up to 6 tiles; embeddings of soft visual words",
)
