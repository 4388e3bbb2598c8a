"""Aya Vision, Cohere2 Vision, Ovis2 and SmolVLM: tiles between markers."""

from collections.abc import Iterator, Sequence

import transformers as hf
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.testing._encode import flatten, write_runs
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    text_settings,
    vision_settings,
    write_chat_template,
)
from eah_interp.testing._tiled import IDEFICS3

MAX_TILES = 6
AYA_CHAT = write_chat_template(
    user="<|USER_TOKEN|>", assistant="<|CHATBOT_TOKEN|>", image="<image>"
)
OVIS_CHAT = write_chat_template(
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    image="<image>\n",
    close="<|im_end|>\n",
)
OVIS_INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def _build_cohere2(size: Size, tokenizer: Tokenizer) -> hf.Cohere2Config:
    """Build a decoder that alternates windows with RoPE and full layers without."""
    text = text_settings(size, tokenizer, logit_scale=1.0, sliding_window=512)
    return hf.Cohere2Config(**text, tie_word_embeddings=False)


def _configure_aya(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=_build_cohere2(size, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=False,
    )


def _process_aya(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=MAX_TILES
    )
    return hf.AyaVisionProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=AYA_CHAT,
    )


def _configure_cohere2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_settings(), vision_use_head=False),
        text_config=_build_cohere2(size, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )


def _cut_tiles(picture: Image.Image) -> Iterator[Image.Image]:
    """Yield tiles of the grid that the picture needs least enlarging for, then all."""
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, MAX_TILES + 1)
            for rows in range(1, MAX_TILES // columns + 1)
        ),
        key=lambda grid: grid[0] * grid[1],
    )
    scales = [
        min(columns * 32 / picture.width, rows * 32 / picture.height)
        for columns, rows in grids
    ]
    enlarging = [scale for scale in scales if scale >= 1]
    columns, rows = grids[scales.index(min(enlarging) if enlarging else max(scales))]
    canvas = picture.resize((32 * columns, 32 * rows), Image.Resampling.BICUBIC)
    for row in range(rows):
        for column in range(columns):
            left, top = 32 * column, 32 * row
            yield canvas.crop((left, top, left + 32, top + 32))
    if rows * columns > 1:
        yield picture


def _encode_cohere2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Cohere2VisionProcessor does: tiles that each end with a line break."""
    tiles = [list(_cut_tiles(image)) for image in flatten(images)]
    pictures = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    one = "<|IMG_PATCH|>" * 4 + "<|IMG_LINE_BREAK|>"
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="<|IMG_PATCH|>",
        runs=["<|START_OF_IMG|>" + one * len(cut) + "<|END_OF_IMG|>" for cut in tiles],
    )
    flat = [tile for cut in tiles for tile in cut]
    return BatchFeature({**words, **pictures(flat, return_tensors="pt")})


def _configure_ovis2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(size, tokenizer)
    return hf.Ovis2Config(
        vision_config={**vision_settings(), "vocab_size": 64, "hidden_stride": 2},
        text_config=hf.Qwen2Config(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(
            list(OVIS_INDICATORS)
        ),
        vocab_size=text["vocab_size"],
        hidden_size=size.d_model,
        tie_word_embeddings=False,
    )


def _process_ovis2(tokenizer: Tokenizer) -> ProcessorMixin:
    pictures = hf.Ovis2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=MAX_TILES
    )
    return hf.Ovis2Processor(
        pictures, tokenizer, image_seq_length=4, chat_template=OVIS_CHAT
    )


def _configure_smolvlm(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    return hf.SmolVLMConfig(
        vision_config=vision_settings(),
        text_config=hf.LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )


def _encode_smolvlm(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what SmolVLMProcessor does: a marker before each tile, the whole last."""
    pictures = hf.SmolVLMImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 32}
    )
    nested = [list(row) for row in images if row]
    encoded = pictures(nested, return_tensors="pt", return_row_col_info=True)
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
OVIS2 = Family(
    "ovis2",
    "Ovis2ForConditionalGeneration",
    _configure_ovis2,
    specials=("<IMG_ATOM>", "<image>", *OVIS_INDICATORS, "<|im_start|>", "<|im_end|>"),
    add_bos=False,
    build_processor=_process_ovis2,
    notes="the whole picture, then up to 6 tiles; embeddings of soft visual words",
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
