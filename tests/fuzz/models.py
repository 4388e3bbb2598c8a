"""What a model is given: encode, trace, generate, describe, spans, sinks."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.interventions import find_sink_dims
from eah_interp.toy import draw_scene
from tests.fuzz.harness import Input, Target
from tests.fuzz.values import (
    Rng,
    change,
    input_of,
    odd,
    odd_tensor,
    odd_text,
    pick,
    show,
)

QUESTION = "Is there a boat in the image?"


GENERATION = ["num_beams", "do_sample", "temperature", "top_k", "top_p", "use_cache"]
GENERATION += ["repetition_penalty", "no_repeat_ngram_size", "eos_token_id", "min_p"]
GENERATION += ["pad_token_id", "forced_eos_token_id", "sequence_bias", "stop_strings"]
GENERATION += ["prefill_chunk_size", "exponential_decay_length_penalty", "streamer"]
GENERATION += ["logits_processor", "stopping_criteria", "assistant_model"]
GENERATION += ["generation_config", "suppress_tokens", "num_return_sequences"]
GENERATION += ["prompt_lookup_num_tokens", "cache_implementation", "past_key_values"]
GENERATION += ["guidance_scale", "negative_prompt_ids", "assistant_early_exit"]
GENERATION += ["num_beam_groups", "penalty_alpha", "dola_layers", "attention_mask"]
"""Settings of transformers' `generate`."""


@functools.cache
def model() -> Any:
    return eah.load()


@functools.cache
def picture() -> Any:
    return draw_scene(0).pil()


def closed() -> Image.Image:
    image = Image.new("RGB", (4, 4))
    image.close()
    return image


def odd_image(rng: Rng) -> Any:
    """Choose an image, or what is taken for one."""
    image = picture()
    pixels = np.asarray(image)
    images: list[Callable[[], Any]] = [
        lambda: image,
        lambda: pixels,
        lambda: torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        lambda: pixels.astype(np.float32) / 255,
        lambda: pixels.astype(np.float64),
        lambda: pixels.astype(np.int64) * 1000,
        lambda: pixels.astype(np.int16) - 300,
        lambda: pixels.astype(np.float16),
        lambda: pixels > 100,
        lambda: pixels.astype(complex),
        lambda: pixels.astype(object),
        lambda: np.full((8, 8, 3), np.nan),
        lambda: np.full((8, 8, 3), np.inf, dtype=np.float32),
        lambda: torch.full((3, 8, 8), float("nan")),
        lambda: pixels[:0],
        lambda: pixels[:, :, 0],
        lambda: pixels[0],
        lambda: pixels[None],
        lambda: np.zeros((8, 8, 2), np.uint8),
        lambda: np.zeros((8, 8, 4), np.uint8),
        lambda: np.zeros((8, 8, 7), np.uint8),
        lambda: np.zeros((1, 1, 3), np.uint8),
        lambda: np.zeros((3, 1, 1), np.uint8),
        lambda: torch.zeros(3, 8, 8, dtype=torch.bfloat16),
        lambda: torch.zeros(3, 8, 8, device="meta"),
        lambda: torch.zeros(3, 8, 8).to_sparse(),
        lambda: Image.new(pick(rng, ["L", "1", "P", "RGBA", "CMYK", "F", "I"]), (8, 8)),
        lambda: Image.new("RGB", pick(rng, [(1, 1), (1, 500), (500, 1), (0, 4)])),
        closed,
        lambda: [image, image],
        lambda: [[image], [image]],
        lambda: [image, None],
        list,
        lambda: [[]],
        lambda: [[image, image]],
        lambda: (image,),
        lambda: "nowhere.png",
        lambda: Path("nowhere.png"),
        lambda: "http://localhost:1/x.png",
        lambda: "data:image/png;base64,AAAA",
        lambda: b"\x89PNG",
        lambda: {"input_ids": torch.tensor([[1]])},
        dict,
        lambda: odd(rng),
    ]
    return pick(rng, images)()


def odd_prompt(rng: Rng) -> Any:
    kind = int(rng.integers(8))
    if kind < 4:
        return odd_text(rng)
    if kind == 4:
        return [odd_text(rng) for _ in range(int(rng.integers(0, 4)))]
    if kind == 5:
        return odd(rng)
    if kind == 6:
        return [{"role": pick(rng, ["user", "x", None]), "content": odd(rng)}]
    return pick(
        rng, [QUESTION, None, (), [QUESTION], [[QUESTION]], np.array([QUESTION])]
    )


def ask(rng: Rng) -> tuple[Any, Any]:
    """Choose an image and a prompt of which one at least is mostly right."""
    which = int(rng.integers(4))
    image = picture() if which == 0 else odd_image(rng)
    prompt = QUESTION if which == 1 else odd_prompt(rng)
    return image, prompt


def odd_encoding(rng: Rng, *, more: bool = True) -> Any:
    """An encoding of which a tensor was changed, left out or put beside."""
    encoding = dict(model().encode(picture(), QUESTION))
    for _ in range(int(rng.integers(1, 3))):
        key = pick(rng, list(encoding))
        way = int(rng.integers(5))
        if way == 0 and len(encoding) > 1:
            del encoding[key]
        elif way == 1:
            encoding[key] = odd(rng)
        elif way == 2 and more:
            encoding[pick(rng, ["extra", "labels", "inputs_embeds"])] = odd(rng)
        elif way == 3 and key == "attention_mask":
            encoding[key] = odd_mask(rng, encoding[key])
        elif isinstance(encoding[key], torch.Tensor):
            encoding[key] = odd_tensor(rng, encoding[key])
    return encoding


def odd_mask(rng: Rng, mask: Any) -> Any:
    """Choose a mask of four axes, or of fewer or more tokens."""
    width = mask.shape[-1] if isinstance(mask, torch.Tensor) and mask.ndim else 8
    seen = torch.ones(1, 1, width, width).tril().bool()
    hidden = torch.zeros(seen.shape).masked_fill
    masks = [seen, ~seen, seen.long(), seen.float(), seen[..., :-1], seen[0]]
    masks += [hidden(~seen, number) for number in (-1e4, -torch.inf, torch.nan)]
    masks += [hidden(~seen, torch.finfo().min), hidden(seen, torch.finfo().min)]
    masks += [seen[:, 0, 0, :-1], torch.ones(1, width + 3), torch.ones(1, width - 1)]
    masks += [{"full_attention": seen}, torch.zeros(1, width)]
    return pick(rng, masks)


def make_encode(rng: Rng, folder: Path) -> Input:
    image, prompt = ask(rng)
    if rng.random() < 0.1:
        return input_of(model().encode, image, called="encode", then=dict)
    return input_of(model().encode, image, prompt, called="encode", then=dict)


def make_spans(rng: Rng, folder: Path) -> Input:
    given = odd(rng) if rng.random() < 0.2 else odd_encoding(rng)
    return input_of(model().spans, given, called="spans")


def make_describe(rng: Rng, folder: Path) -> Input:
    image, prompt = ask(rng)
    options: dict[str, Any] = {"max_new_tokens": 2}
    if rng.random() < 0.3:
        options["max_new_tokens"] = pick(
            rng, [0, -1, 1, 1.5, "2", None, True, odd(rng)]
        )
    if rng.random() < 0.2:
        values = [0, -1, 2, True, None, "static", 0.5, odd(rng), odd(rng)]
        options[pick(rng, GENERATION)] = pick(rng, values)
    if rng.random() < 0.2:
        return input_of(
            model().describe, odd_encoding(rng), called="describe", **options
        )
    return input_of(model().describe, image, prompt, called="describe", **options)


def make_trace(rng: Rng, folder: Path) -> Input:
    given = ask(rng) if rng.random() < 0.5 else (odd_encoding(rng),)
    masks: dict[str, Any] = {"image_mask": None, "prompt_mask": None}
    encoding = model().encode(picture(), QUESTION)
    true = torch.ones_like(encoding["input_ids"]).bool()
    if rng.random() < 0.5:
        masks[pick(rng, list(masks))] = (
            odd_tensor(rng, true) if rng.random() < 0.8 else 3
        )
    settings = pick(
        rng,
        [
            eah.EAH(),
            eah.EAH(layers=(0, 1), donor="mean"),
            eah.EAH(donor="shuffled"),
            eah.EAH(donor="random", seed=(1, 2)),
            eah.PAI(),
            eah.Ablation(heads=["L1H0"], how="mean"),
            eah.VAR(sink_dims=(1,)),
        ],
    )

    def call() -> Any:
        with model().trace(*given):
            eah.intervene(model(), settings, **masks)
            logits = model().output.logits.save()
        return logits

    shown = ", ".join(map(show, given))
    return Input(call, f"trace({shown}) {settings} {show(masks)}")


def make_generate(rng: Rng, folder: Path) -> Input:
    patched = rng.random() < 0.5
    given = ask(rng) if rng.random() < 0.7 else (odd_encoding(rng, more=False),)
    options: dict[str, Any] = {"max_new_tokens": 2}
    if rng.random() < 0.3:
        given = (picture(), QUESTION)
        options[pick(rng, GENERATION)] = pick(rng, [0, 2, None, "static", odd(rng)])

    def call() -> Any:
        used = eah.edit(model(), eah.EAH(steps="all")) if patched else model()
        with used.generate(*given, **options):
            tokens = used.generator.output.save()
        return tokens

    shown = ", ".join(map(show, given))
    return Input(call, f"generate({shown}, {show(options)}) patched={patched}")


def make_sinks(rng: Rng, folder: Path) -> Input:
    def use(found: Any) -> Any:
        return [found, found.frame(), found.top(3)]

    if rng.random() < 0.15:
        given = (picture(), QUESTION) if rng.random() < 0.7 else ask(rng)
        number = pick(rng, [1, 0, -1, 10**6, odd(rng)])
        return input_of(find_sink_dims, model(), *given, k=number)
    if rng.random() < 0.2:
        found = eah.score_sinks(model(), picture(), QUESTION)
        method = pick(rng, [found.top, found.dense, found.plot])
        return input_of(method, odd(rng), then=type)
    options = {"definition": "visible", "beta": None, "layers": None}
    if rng.random() < 0.4:
        image, prompt = ask(rng)
        return input_of(eah.score_sinks, model(), image, prompt, then=use)
    if rng.random() < 0.2:
        return input_of(eah.score_sinks, model(), odd_encoding(rng), then=use)
    changed = change(rng, options)
    return input_of(eah.score_sinks, model(), picture(), QUESTION, then=use, **changed)


TARGETS = {
    "encode": Target(make_encode, 4_000),
    "spans": Target(make_spans, 800),
    "describe": Target(make_describe, 2_000),
    "trace": Target(make_trace, 1_500),
    "generate": Target(make_generate, 1_000),
    "score_sinks": Target(make_sinks, 1_500),
}
