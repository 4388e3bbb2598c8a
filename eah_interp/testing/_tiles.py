"""Idefics3 and InternVL: tiles beside a view of the whole picture."""

from collections.abc import Iterator, Sequence

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.layouts.canvases import fit_inside
from eah_interp.lvlm.loading import drop_video
from eah_interp.testing._facts import (
    Family,
    Pictures,
    Size,
    Tokenizer,
    cut_tiles,
    flatten,
    mark_tokens,
    read_pixels,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
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


# ---- Aya Vision, Cohere2 Vision, Ovis2 and SmolVLM: tiles between markers.


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


# ---- Crops beside a view of the whole picture: Llama 4 and Molmo2.


LLAMA4_SIDE = 32


LLAMA4_TOKENS = (
    "<|patch|>",
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


MOLMO2_TOKENS = (
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<im_end>",
    "<frame_start>",
    "<frame_end>",
    "<|image|>",
)


CROP, WINDOW = 5, 3  # patches along a side of a crop, and between crops


def _configure_llama4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        intermediate_size_mlp=2 * size.d_model,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=32,
    )
    return hf.Llama4Config(
        vision_config=vision_settings(
            intermediate_size=128,
            image_size=LLAMA4_SIDE,
            projector_input_dim=64,
            projector_output_dim=64,
            vision_output_dim=64,
        ),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )


def _encode_llama4(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Llama4Processor does: tiles of the least canvas that a picture fits."""
    views, runs = [], []
    for image in flatten(images):
        rows, columns = (-(-side // LLAMA4_SIDE) for side in image.size[::-1])
        runs.append(_write_llama4(rows, columns))
        if rows * columns > 1:
            canvas = Image.new("RGB", (columns * LLAMA4_SIDE, rows * LLAMA4_SIDE))
            target = max(image.height, LLAMA4_SIDE), max(image.width, LLAMA4_SIDE)
            height, width = fit_inside((image.height, image.width), target)
            canvas.paste(image.convert("RGB").resize((width, height)))
            views.append(cut_tiles(read_pixels(canvas), LLAMA4_SIDE))
            whole = image.resize((LLAMA4_SIDE, LLAMA4_SIDE))
        else:
            size = (image.height, image.width)
            height, width = fit_inside(size, (LLAMA4_SIDE, LLAMA4_SIDE))
            whole = Image.new("RGB", (LLAMA4_SIDE, LLAMA4_SIDE))
            whole.paste(image.convert("RGB").resize((width, height)))
        views.append(read_pixels(whole)[None])
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature({**words, "pixel_values": torch.cat(views)})


def _write_llama4(rows: int, columns: int) -> str:
    one = "<|patch|>" * 4
    row = "<|tile_x_separator|>".join([one] * columns) + "<|tile_y_separator|>"
    tiles = row * rows if rows * columns > 1 else ""
    return f"<|image_start|>{tiles}<|image|>{one}<|image_end|>"


def _configure_molmo2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    side = 8 * CROP
    image, _, start, low, end, frame, frame_end, _ = tokenizer.convert_tokens_to_ids(
        list(MOLMO2_TOKENS)
    )
    text = text_settings(
        size,
        tokenizer,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        additional_vocab_size=0,
    )
    tower = {"num_key_value_heads": 4, "head_dim": 8}
    return hf.Molmo2Config(
        vision_config=vision_settings(image_size=[side, side], **tower),
        adapter_config={
            "vision_feature_layer": [1, 0],
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "text_hidden_size": size.d_model,
            **tower,
        },
        text_config=text,
        image_patch_id=image,
        image_start_token_id=start,
        low_res_image_start_token_id=low,
        image_end_token_id=end,
        frame_start_token_id=frame,
        frame_end_token_id=frame_end,
    )


def _encode_molmo2(
    tokenizer: Tokenizer, images: Pictures, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Molmo2Processor does, with 5 x 5 patches a crop and margins of one."""
    views, pooled, grids, runs = [], [], [], []
    done = 0
    for image in flatten(images):
        # as many crops as cover the picture without making it smaller
        shape = [max(1, -(-(side - 16) // (8 * WINDOW))) for side in image.size[::-1]]
        height, width = (8 * (WINDOW * n + 2) for n in shape)
        pixels = read_pixels(image.resize((width, height)))
        crops = pixels.unfold(1, 8 * CROP, 8 * WINDOW).unfold(2, 8 * CROP, 8 * WINDOW)
        crops = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
        low = read_pixels(image.resize((8 * CROP, 8 * CROP)))[None]
        own = [torch.arange(CROP**2).view(CROP, CROP), _number_patches(*shape)]
        squares = [_pool(numbers, done + i * CROP**2) for i, numbers in enumerate(own)]
        views.append(torch.cat([low, crops]))
        done += len(views[-1]) * CROP**2
        pooled += [square.flatten(0, 1) for square in squares]
        grids.append([*squares[0].shape[:2], *squares[1].shape[:2]])
        runs.append("".join(_write_molmo2(grids[-1])))
    patches = [cut_tiles(view, 8) for view in torch.cat(views)]
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature(
        {
            **words,
            "mm_token_type_ids": mark_tokens(
                words["input_ids"], tokenizer, *MOLMO2_TOKENS[:-1]
            ),
            "pixel_values": torch.stack(patches).permute(0, 1, 3, 4, 2).flatten(2),
            "image_token_pooling": torch.cat(pooled),
            "image_grids": torch.tensor(grids),
            "image_num_crops": torch.tensor([len(view) for view in views]),
        }
    )


def _number_patches(rows: int, columns: int) -> Tensor:
    """Number the canvas's patches by the crop that they are not the margin of."""
    places = []
    for n_crops in (rows, columns):
        place = torch.arange(WINDOW * n_crops + 2)
        crop = ((place - 1).clamp(min=0) // WINDOW).clamp(max=n_crops - 1)
        places.append((crop, place - WINDOW * crop))
    (row, y), (column, x) = places
    crop = row[:, None] * columns + column
    return crop * CROP**2 + y[:, None] * CROP + x


def _pool(numbers: Tensor, first: int) -> Tensor:
    """Group a grid of patch numbers 2 x 2, with -1 below and to the right of it."""
    bottom, right = (-side % 2 for side in numbers.shape)
    padded = torch.nn.functional.pad(numbers + first, (0, right, 0, bottom), value=-1)
    return padded.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)


def _write_molmo2(grid: Sequence[int]) -> Iterator[str]:
    for start, rows, columns in (
        ("<low_res_im_start>", grid[0], grid[1]),
        ("<im_start>", grid[2], grid[3]),
    ):
        yield start + ("<im_patch>" * columns + "<im_col>") * rows + "<im_end>"


LLAMA4 = Family(
    "llama4",
    "Llama4ForConditionalGeneration",
    _configure_llama4,
    specials=LLAMA4_TOKENS,
    named={"image_token": "<|patch|>"},
    placeholder="<|image|>",
    no_processor="Llama4Processor needs torchvision",
    encode=_encode_llama4,
    notes="tiles of 2 x 2 tokens, the whole picture last; chunked attention, experts",
)


MOLMO2 = Family(
    "molmo2",
    "Molmo2ForConditionalGeneration",
    _configure_molmo2,
    specials=MOLMO2_TOKENS,
    named={"image_token": "<im_patch>"},
    placeholder="<|image|>",
    no_processor="Molmo2Processor needs torchvision",
    encode=_encode_molmo2,
    notes="pooled patches of overlapping crops; image tokens see each other",
)
