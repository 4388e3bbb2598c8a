"""Rows of patches, or of tiles, that end with a token or a vector of their own.

Families: hunyuan_vl, fuyu, phi4_multimodal, llama4, molmo2.
"""

from collections.abc import Iterator, Sequence

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from eah_interp.lvlm.layouts.canvases import fit_inside
from eah_interp.testing._facts import (
    Family,
    ImageRows,
    Size,
    Tokenizer,
    any_size_settings,
    cut_tiles,
    flatten,
    mark_tokens,
    name_ids,
    pad_image,
    read_pixels,
    rope_settings,
    text_settings,
    vision_settings,
    write_chat_template,
    write_runs,
)

# ---- HunYuan-VL.

HUNYUAN_PLACEHOLDER = "<|im_start|><|image|><|im_end|>"

HUNYUAN_CHAT = write_chat_template(
    user="<|user|>", assistant="<|assistant|>", image=HUNYUAN_PLACEHOLDER
)


def _configure_hunyuan(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    half = size.d_head // 2
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=rope_settings(
            mrope_section=[half - 3 * (half // 4), *[half // 4] * 3]
        ),
    )
    return hf.HunYuanVLConfig(
        vision_config=any_size_settings(max_image_size=64),
        text_config=text,
        tie_word_embeddings=False,
        **name_ids(
            tokenizer,
            image_token_id="<|image|>",
            im_start_id="<|im_start|>",
            im_end_id="<|im_end|>",
        ),
    )


def _process_hunyuan(tokenizer: Tokenizer) -> ProcessorMixin:
    image_processor = hf.HunYuanVLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    return hf.HunYuanVLProcessor(image_processor, tokenizer, chat_template=HUNYUAN_CHAT)


HUNYUAN_VL = Family(
    "hunyuan_vl",
    "HunYuanVLForConditionalGeneration",
    _configure_hunyuan,
    specials=("<|image|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"),
    named={
        "image_token": "<|image|>",
        "image_start_token": "<|im_start|>",
        "image_end_token": "<|im_end|>",
    },
    add_bos=False,
    placeholder=HUNYUAN_PLACEHOLDER,
    build_processor=_process_hunyuan,
    notes="2 x 2 patches merged; begin, newline and end vectors are image tokens",
)


# ---- Fuyu.


def _configure_fuyu(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size, tokenizer, rope_parameters=rope_settings(partial_rotary_factor=1.0)
    )
    del text["num_key_value_heads"], text["head_dim"]
    return hf.FuyuConfig(
        text_config=hf.PersimmonConfig(**text),
        patch_size=8,
        **name_ids(tokenizer, image_token_id="|SPEAKER|"),
    )


def _encode_fuyu(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what FuyuProcessor does for an image, wherever it is in the text."""
    padded = [pad_image(image, factor=8, color=1) for image in flatten(images)]
    patches = [cut_tiles(read_pixels(image), 8) for image in padded]
    words = write_runs(
        tokenizer,
        images,
        prompts,
        placeholder="|SPEAKER|",
        runs=(
            ("|SPEAKER|" * (image.width // 8) + "|NEWLINE|") * (image.height // 8)
            + "<s>"
            for image in padded
        ),
    )
    pixels = torch.cat(patches).permute(0, 2, 3, 1).flatten(1)
    return BatchFeature({**words, "pixel_values": pixels[None]})


FUYU = Family(
    "fuyu",
    "FuyuForCausalLM",
    _configure_fuyu,
    specials=("|SPEAKER|", "|NEWLINE|"),
    named={"image_token": "|SPEAKER|"},
    placeholder="|SPEAKER|",
    no_processor="FuyuProcessor takes one image, and puts it before the text",
    encode=_encode_fuyu,
    notes="no vision tower: pixels are projected; a newline token ends each row",
)


# ---- Phi-4-multimodal.

PHI4_SIDE = 32


def _configure_phi4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    image, audio = tokenizer.convert_tokens_to_ids(["<|image|>", "<|audio|>"])
    return hf.Phi4MultimodalConfig(
        vision_config=vision_settings(crop_size=PHI4_SIDE, image_token_id=image),
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 8,
            "input_size": 16,
            "bias_max_distance": 8,
            "audio_token_id": audio,
        },
        **text_settings(
            size, tokenizer, rope_parameters=rope_settings(partial_rotary_factor=1.0)
        ),
    )


def _encode_phi4(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Phi4MultimodalProcessor does, at most 36 crops: a canvas, cut in tiles.

    Crops of images with fewer are padded with black; rows of patches that show
    padding alone are masked, and dropped by the model.
    """
    views, masks, sizes, runs = [], [], [], []
    for image in flatten(images):
        canvas, kept = _build_phi4_canvas(image)
        whole = canvas.resize((PHI4_SIDE, PHI4_SIDE), Image.Resampling.BICUBIC)
        crops = cut_tiles(read_pixels(canvas), PHI4_SIDE)
        views.append(torch.cat([read_pixels(whole)[None], crops]))
        tiles = cut_tiles(kept[None], 4)[:, 0]
        masks.append(torch.cat([torch.ones(1, 4, 4), tiles]))
        sizes.append((canvas.height, canvas.width))
        rows, columns = (-(-int(n) // 2) for n in (kept[:, 0].sum(), kept[0].sum()))
        runs.append("<|image|>" * (rows * (columns + 1) + 1 + 2 * 3))
    most = max(map(len, views))
    words = write_runs(tokenizer, images, prompts, placeholder="<|image|>", runs=runs)
    return BatchFeature(
        {
            **words,
            "image_pixel_values": torch.stack([_fill(v, most, 0) for v in views]),
            "image_sizes": torch.tensor(sizes),
            "image_attention_mask": torch.stack([_fill(m, most, 1) for m in masks]),
        }
    )


def _build_phi4_canvas(image: Image.Image) -> tuple[Image.Image, Tensor]:
    """Return the canvas, and 1 for each 8 x 8 patch of it that is not padding alone."""
    across, down = (-(-side // PHI4_SIDE) * PHI4_SIDE for side in image.size)
    scale = min(across / image.width, down / image.height)
    shown = min(across, int(image.width * scale)), min(down, int(image.height * scale))
    canvas = Image.new("RGB", (across, down), (255, 255, 255))
    canvas.paste(image.convert("RGB").resize(shown))
    kept = torch.ones(down // 8, across // 8)
    kept[down // 8 - (down - shown[1]) // 8 :] = 0
    kept[:, across // 8 - (across - shown[0]) // 8 :] = 0
    return canvas, kept


def _fill(values: Tensor, length: int, value: int) -> Tensor:
    missing = values.new_full((length - len(values), *values.shape[1:]), value)
    return torch.cat([values, missing])


PHI4_MULTIMODAL = Family(
    "phi4_multimodal",
    "Phi4MultimodalForCausalLM",
    _configure_phi4,
    specials=("<|image|>", "<|audio|>"),
    named={"image_token": "<|image|>", "audio_token": "<|audio|>"},
    placeholder="<|image|>",
    no_processor="Phi4MultimodalProcessor needs torchvision",
    encode=_encode_phi4,
    notes="crops, a separator and the whole canvas, each row with an extensor",
)


# ---- Llama 4.

LLAMA4_SIDE = 32

LLAMA4_TOKENS = (
    "<|patch|>",
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


def _configure_llama4(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=rope_settings(),
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
        **name_ids(
            tokenizer,
            image_token_index="<|patch|>",
            boi_token_index="<|image_start|>",
            eoi_token_index="<|image_end|>",
        ),
    )


def _encode_llama4(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Llama4Processor does: tiles of the least canvas that an image fits."""
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


LLAMA4 = Family(
    "llama4",
    "Llama4ForConditionalGeneration",
    _configure_llama4,
    specials=LLAMA4_TOKENS,
    named={"image_token": "<|patch|>"},
    placeholder="<|image|>",
    no_processor="Llama4Processor needs torchvision",
    encode=_encode_llama4,
    notes="tiles of 2 x 2 tokens, the whole image last; chunked attention, experts",
)


# ---- Molmo2.

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


def _configure_molmo2(size: Size, tokenizer: Tokenizer) -> PreTrainedConfig:
    side = 8 * CROP
    text = text_settings(
        size,
        tokenizer,
        rope_parameters=rope_settings(),
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
        **name_ids(
            tokenizer,
            image_patch_id="<im_patch>",
            image_start_token_id="<im_start>",
            low_res_image_start_token_id="<low_res_im_start>",
            image_end_token_id="<im_end>",
            frame_start_token_id="<frame_start>",
            frame_end_token_id="<frame_end>",
        ),
    )


def _encode_molmo2(
    tokenizer: Tokenizer, images: ImageRows, prompts: Sequence[str]
) -> BatchFeature:
    """Do what Molmo2Processor does, with 5 x 5 patches a crop and margins of one."""
    views, pooled, grids, runs = [], [], [], []
    done = 0
    for image in flatten(images):
        # as many crops as cover the image without making it smaller
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
