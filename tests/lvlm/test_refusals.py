"""Bad input and unfit models get a named error before any forward pass."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import eah_interp as eah
from eah_interp.attribution import attribute_patches
from eah_interp.errors import (
    ExtraMissingError,
    InputError,
    ModelError,
    NumericalError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.interventions import find_sinks, map_tower
from eah_interp.testing import (
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
)
from tests.alignment import share_tensors
from tests.tiny_families import SUPPORTED, ignore_renamed, share_model, sweep


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture
def no_forward(model, monkeypatch):
    """Fail the test if the model runs at all."""

    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass was run")

    monkeypatch.setattr(type(model._module.model), "forward", refuse)
    monkeypatch.setattr(type(model), "interleave", refuse)


def intervened(model, settings):
    with model.trace(random_image(), "what ?"):
        eah.intervene(model, settings)


def broken_image(folder, content: bytes):
    path = folder / "broken.png"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["trace", "scan", "generate", "describe", "sinks"])
@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        ([], "what ?", r"no image was given: expected at least 1"),
        (None, "what ?", r"no image was given"),
        ("missing.png", "what ?", r"no image file at missing.png"),
        ([[random_image()], []], "what ?", r"row 1 has no image"),
        ([random_image()] * 2, ["a"] * 3, r"2 images for 3 prompts: expected"),
        (random_image(), "<image> and <image> ?", r"2 <image> placeholders for 1"),
        (np.zeros((5, 5, 7)), "what ?", r"height x width .* got shape \(5, 5, 7\)"),
        (np.full((4, 4, 3), 7.0), "what ?", r"from 0 to 1, got 7 to 7"),
        (torch.full((3, 4, 4), torch.nan), "what ?", r"from 0 to 1, got nan"),
        (np.full((4, 4, 3), 300), "what ?", r"from 0 to 255, got 300"),
    ],
)
@pytest.mark.usefixtures("no_forward")
def test_bad_images_and_prompts_are_refused(model, images, prompts, message, how):
    call = getattr(model, how, None) or functools.partial(eah.score_sinks, model)
    with pytest.raises(InputError, match=message):
        call(images, prompts)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r"is empty \(0 bytes\)"), (b"not an image", r"cannot be decoded")],
)
@pytest.mark.usefixtures("no_forward")
def test_a_broken_file_is_refused(model, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        model.trace(broken_image(tmp_path, content), "what ?")


@pytest.mark.usefixtures("no_forward")
def test_a_truncated_file_is_refused(model, tmp_path):
    whole = tmp_path / "whole.png"
    random_image(width=64, height=64).save(whole)
    content = whole.read_bytes()
    path = broken_image(tmp_path, content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be decoded"):
        model.trace(path, "what ?")
    # PIL opens lazily: such an image fails only when its pixels are asked for.
    with (
        Image.open(path) as image,
        pytest.raises(InputError, match="cannot be decoded"),
    ):
        model.trace(image, "what ?")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (eah.EAH(layers=(7,)), r"layer 7 does not exist: expected 0 to 2"),
        (eah.EAH.official(), r"layer 15 does not exist: expected 0 to 2.*name"),
        (eah.EAH(donor=4), r"heads \[4\] do not exist: the model has heads 0 to 3"),
        (eah.EAH(recipients=(0, 9)), r"heads \[9\] do not exist"),
    ],
)
@pytest.mark.parametrize("how", ["trace", "edit"])
def test_layers_and_heads_out_of_range_are_refused(model, settings, message, how):
    call = {"edit": eah.edit, "trace": intervened}[how]
    with pytest.raises(SettingsError, match=message):
        call(model, settings)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers must be indices .*, got \(\)"),
        ({"layers": (-1,)}, r"layers must be indices of 0 or more.* got \(-1,\)"),
        ({"layers": (1, 1)}, r"layers must be indices .* each once, got \(1, 1\)"),
        ({"layers": (True,)}, "layers must be indices"),
        ({"definition": "papper"}, "definition must be one of paper, official, visi"),
        ({"donor": "densist"}, "donor must be one of densest"),
        ({"donor": -1}, "donor head must be 0 or more"),
        ({"recipients": "some"}, "recipients must be indices .*, got 'some'"),
        ({"steps": "decode"}, "steps must be one of prefill, all"),
        ({"items": "second"}, "items must be one of all, first"),
        ({"head_0": "maybe"}, "head_0 must be one of eligible, never"),
        ({"beta": -1.0}, "beta must be a number of 0 or more, got -1.0"),
        ({"beta": float("nan")}, "beta must be a number"),
        ({"gamma": 0.0}, r"gamma is a share .* got 0.0"),
        ({"gamma": 1.5}, r"gamma is a share .* got 1.5"),
    ],
)
def test_impossible_settings_are_refused_when_made(settings, message):
    with pytest.raises(SettingsError, match=message):
        eah.EAH(**settings)


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(SettingsError, match=r"unknown settings layer: expected beta"):
        eah.EAH.from_dict({"layer": 1})


def test_intervening_outside_a_trace_is_refused(model):
    with pytest.raises(UnsupportedError, match=r"inside a trace only: write `with"):
        eah.intervene(model)


def test_a_prompt_without_image_tokens_is_refused(model):
    ids = torch.tensor([[5, 6, 7]])
    with (
        pytest.raises(InputError, match=r"expected at least 1, got 0 of 3 in batch"),
        model.trace(input_ids=ids),
    ):
        eah.intervene(model)


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_image_tokens_whose_images_do_not_come_are_refused(family):
    """The model would read them as words, and every number be about no image."""
    model, encoding = share_model(family), tiny_inputs(family)
    words = {
        key: value
        for key, value in encoding.items()
        if isinstance(value, torch.Tensor) and not value.is_floating_point()
    }
    message = r"image tokens and no images came with"
    with pytest.raises(InputError, match=message):
        eah.score_sinks(model, words)
    with pytest.raises(InputError, match=message), model.trace(**words):
        eah.intervene(model)


@pytest.mark.parametrize(
    "act",
    [
        find_sinks,
        map_tower,
        functools.partial(eah.logit_lens, objects=["cat"]),
        functools.partial(attribute_patches, objects=["cat"]),
    ],
)
def test_nothing_is_said_of_images_that_do_not_come(model, act):
    encoding = dict(model.encode(random_image(), "is there a cat ?"))
    del encoding["pixel_values"]
    with pytest.raises(InputError, match=r"image tokens and no images came with"):
        act(model, encoding)


def test_an_image_mask_without_tokens_is_refused(model):
    ids = model.encode(random_image(), "what ?")["input_ids"]
    with (
        pytest.raises(InputError, match=r"selects no tokens: expected at least 1"),
        model.trace(random_image(), "what ?"),
    ):
        eah.intervene(model, image_mask=torch.zeros_like(ids).bool())


def test_an_image_mask_of_the_wrong_width_is_refused(model):
    mask = torch.ones(1, 5000, dtype=torch.bool)
    with (
        pytest.raises(InputError, match=r"shape \(1, 5000\): expected a flag"),
        model.trace(random_image(), "what ?"),
    ):
        eah.intervene(model, image_mask=mask)


def test_a_prompt_that_is_half_in_a_cache_is_refused(model):
    encoding = model.encode(random_image(), "what ?")
    with torch.no_grad():
        cache = model._module(**encoding, use_cache=True).past_key_values
    width = encoding["input_ids"].shape[1]
    more = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.ones(1, width + 3, dtype=torch.long),
        "past_key_values": cache,
    }
    with (
        pytest.raises(InputError, match=r"covers \d+ tokens and input_ids 3: part of"),
        torch.no_grad(),
        model.trace(**more),
    ):
        eah.intervene(model)


def test_nan_attention_weights_are_refused():
    broken = tiny_lvlm("llava")
    wrapped = eah.wrap(broken, tiny_processor("llava"))
    projection = broken.get_submodule(wrapped.anatomy.sites[1].path).q_proj
    with torch.no_grad():
        projection.weight[:, 0] = torch.nan
    with (
        pytest.raises(NumericalError, match=r"NaN or infinite: expected finite"),
        wrapped.trace(random_image(), "what ?"),
    ):
        eah.intervene(wrapped)


@pytest.mark.parametrize("how", ["wrap", "load"])
@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llama", "text-only model"),
        ("blip2_t5", "encoder-decoder"),
        ("mllama", "cross-attention"),
    ],
)
def test_unfit_models_are_refused_by_reason(tmp_path, family, message, how):
    refused = tiny_lvlm(family)
    refused.save_pretrained(tmp_path)
    call = {
        "wrap": functools.partial(eah.wrap, refused),
        "load": functools.partial(eah.load, tmp_path),
    }[how]
    with pytest.raises(ModelError, match=message):
        call()


def test_any_module_is_refused_that_transformers_did_not_make():
    with pytest.raises(ModelError, match="Linear is not a transformers model"):
        eah.wrap(torch.nn.Linear(2, 2))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model at .*: expected a folder with"):
        eah.load(tmp_path / "nothing")


def test_images_without_a_processor_are_refused():
    bare = eah.wrap(tiny_lvlm("llava"))
    with pytest.raises(InputError, match="has no processor"):
        bare.trace(random_image(), "what ?")


def test_a_model_without_processor_runs_on_ready_made_inputs(model):
    bare = eah.wrap(share_tensors(tiny_lvlm("llava"), model._module))
    encoding = model.encode(random_image(), "what ?")
    with torch.no_grad(), bare.trace(**encoding):
        patch = eah.intervene(bare)
        logits = bare.output.logits.save()
    with torch.no_grad(), model.trace(**encoding):
        same = eah.intervene(model)
        expected = model.output.logits.save()
    assert patch.donors.tolist() == same.donors.tolist()
    assert torch.equal(logits, expected)


def test_a_layer_that_was_not_patched_is_not_reported(model):
    with torch.no_grad(), model.trace(random_image(), "what ?"):
        patch = eah.intervene(model, eah.EAH(layers=(0, 1)))
    with pytest.raises(SettingsError, match=r"layer 2 was not patched: .* 0, 1"):
        patch[2]
    with pytest.raises(SettingsError, match=r"layers 0, 1 were patched: name one"):
        _ = patch.donors


# ---- What a ready-made encoding, a mask or a setting of `generate` can hold.


FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "internvl", "paligemma", "idefics3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("odd", [-5, 10**6])
def test_ids_that_the_model_has_no_embedding_for_are_refused(family, odd):
    model = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    encoding = model.encode(random_image(), "what ?")
    encoding["input_ids"][0, -1] = odd
    with (
        pytest.raises(InputError, match=rf"input_ids hold {odd}: expected ids of 0 to"),
        model.trace(encoding),
    ):
        model.output.save()


@pytest.mark.parametrize("mask", ["image_mask", "prompt_mask"])
def test_a_mask_without_numbers_is_refused(model, mask):
    encoding = model.encode(random_image(), "what ?")
    masks = {mask: torch.ones_like(encoding["input_ids"], device="meta").bool()}
    with (
        pytest.raises(InputError, match=f"{mask} is on the meta device"),
        model.trace(encoding),
    ):
        eah.intervene(model, eah.EAH(), **masks)


OTHER_LAYOUTS = {
    "sparse_coo": torch.Tensor.to_sparse,
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "on the meta device": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
@pytest.mark.parametrize(
    "name",
    ["input_ids", "attention_mask", "pixel_values", "token_type_ids", "odd_key"],
)
@pytest.mark.usefixtures("no_forward")
def test_a_tensor_that_is_not_plain_is_refused_whatever_it_is_called(
    model, name, layout, recwarn
):
    encoding = dict(model.encode(random_image(), "what ?"))
    plain = encoding.get(name, encoding["input_ids"])
    odd = {name: OTHER_LAYOUTS[layout](plain)}
    calls = {
        "an encoding": lambda: model.trace({**encoding, **odd}),
        "by name": lambda: model.trace(**{**encoding, **odd}),
        "beside images": lambda: model.trace(random_image(), "what ?", **odd),
        "generate": lambda: model.generate(**{**encoding, **odd}),
        "spans": lambda: model.spans({**encoding, **odd}),
        "sinks": lambda: eah.score_sinks(model, {**encoding, **odd}),
        "in a list": lambda: model.spans({**encoding, name: [odd[name]]}),
        "in a mapping": lambda: model.spans({**encoding, name: {"full": odd[name]}}),
    }
    for call in calls.values():
        with pytest.raises(InputError, match=f"{name}.* is {layout}: expected a dense"):
            call()


@pytest.mark.parametrize("given", [{}, {"attention_mask": torch.ones(1, 3)}])
def test_a_generation_of_nothing_is_refused(model, given):
    with pytest.raises(InputError, match=r"expected .*an encoding, got"):
        model.generate(**given, max_new_tokens=2)


@pytest.mark.usefixtures("no_forward")
def test_what_is_read_at_tokens_needs_the_tokens(model):
    encoding = model.encode(random_image(), "what ?")
    ids = encoding.pop("input_ids")
    encoding["inputs_embeds"] = model._module.get_input_embeddings()(ids).detach()
    for read in (
        lambda: eah.read_patterns(model, encoding, mean=True),
        lambda: eah.attribute_heads(model, encoding, objects=["cat"]),
        lambda: eah.logit_lens(model, encoding, objects=["cat"]),
    ):
        with pytest.raises(InputError, match="has input_ids: expected token ids, got"):
            read()


@pytest.mark.usefixtures("no_forward")
def test_token_ids_alone_that_are_not_plain_are_refused(model):
    ids = model.encode(random_image(), "what ?")["input_ids"]
    with pytest.raises(InputError, match="input_ids is sparse_coo: expected a dense"):
        model.trace(ids.to_sparse())


@pytest.mark.usefixtures("no_forward")
def test_a_mask_beside_images_is_checked_against_their_tokens(model):
    with pytest.raises(InputError, match="a flag for each token of input_ids"):
        model.trace(random_image(), "what ?", attention_mask=torch.ones(3, 2))
    for mask in ("static", (1,), [torch.ones(1)]):
        with pytest.raises(InputError, match="attention_mask must be a tensor of f"):
            model.generate(random_image(), "what ?", attention_mask=mask)


def change_pixels(family, change):
    model = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    encoding = model.encode(random_image(), "what ?")
    encoding["pixel_values"] = change(encoding["pixel_values"])
    with model.trace(encoding):
        model.output.save()


def test_pixels_that_a_vision_tower_refuses_are_named(recwarn):
    with pytest.raises(InputError, match=r"refuses its inputs: Input image size"):
        change_pixels("llava", lambda pixels: pixels[..., :-8])


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": "a"},
        {"temperature": -1.0, "do_sample": True},
        {"num_beams": 0},
        {"num_beams": -1},
        {"eos_token_id": [2**70]},
        {"exponential_decay_length_penalty": (1,)},
        {"forced_eos_token_id": 10**6},
        {"sequence_bias": [[]]},
        {"streamer": 1},
        {"assistant_model": "a"},
        {"prefill_chunk_size": -1},
        {"synced_gpus": True},
        {"assistant_early_exit": 2},
    ],
    ids=str,
)
def test_settings_that_generate_refuses_are_named(model, options):
    with pytest.raises(SettingsError, match="generate refuses its settings"):
        model.describe(random_image(), "what ?", max_new_tokens=2, **options)


def test_a_cache_that_needs_another_package_names_it(model):
    with pytest.raises(ExtraMissingError, match=r"generate needs a package .*quanto"):
        model.describe(random_image(), "what ?", cache_implementation="quantized")


@pytest.mark.parametrize("value", [0.5, "a", torch.tensor([1.0]), [None], True])
def test_token_ids_among_the_settings_of_generate_are_integers(model, value):
    for call in (model.describe, model.generate):
        with pytest.raises(SettingsError, match="pad_token_id must be an id or a list"):
            call(random_image(), "what ?", max_new_tokens=2, pad_token_id=value)


@pytest.mark.parametrize("value", [1, "a", [None], object()])
def test_logits_processors_are_functions(model, value):
    for call in (model.describe, model.generate):
        with pytest.raises(SettingsError, match="logits_processor must be a list of f"):
            call(random_image(), "what ?", max_new_tokens=2, logits_processor=value)


def test_logits_that_nothing_can_be_drawn_from_are_told_as_numbers(model):
    def spoil(ids, scores):
        return scores * torch.nan

    with pytest.raises(NumericalError, match=r"cannot draw a token.*finite logits"):
        model.generate(
            **model.encode(random_image(), "what ?"),
            do_sample=True,
            max_new_tokens=1,
            logits_processor=[spoil],
        )


def test_settings_are_named_also_where_operations_are_counted(model):
    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if self.is_broken:
                raise ValueError("a mode of my own")
            return function(*args, **(kwargs or {}))

    counting, inputs = Counting(), model.encode(random_image(), "what ?")
    counting.is_broken = False
    with counting, pytest.raises(SettingsError, match="generate refuses its settings"):
        model.generate(**inputs, num_beams=-1, max_new_tokens=1)
    counting.is_broken = True
    with counting, pytest.raises(ValueError, match=r"^a mode of my own$"):
        model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        RuntimeError("mine"),
        KeyError("mine"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
    ids=repr,
)
def test_an_error_of_the_user_s_own_code_stays_as_it_is(model, error):
    def mine(ids, scores):
        raise error

    with pytest.raises(type(error)) as raised:
        model.describe(random_image(), max_new_tokens=2, logits_processor=[mine])
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
    ids=repr,
)
def test_a_machine_that_fails_in_generate_is_no_setting(model, error, monkeypatch):
    from transformers.generation import utils

    # as if raised there: its frames are those of the module that compiles it
    code = compile("def fail(*_, **__): raise error", utils.__file__, "exec")
    made = {"error": error, "__name__": utils.__name__}
    exec(code, made)
    monkeypatch.setattr(utils.GenerationMixin, "_sample", made["fail"])
    with pytest.raises(type(error)) as raised:
        model.describe(random_image(), max_new_tokens=2)
    assert raised.value is error
