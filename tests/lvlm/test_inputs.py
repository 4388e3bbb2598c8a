"""What can be traced: every usual kind of image and prompt, and nnsight's own forms."""

from types import SimpleNamespace

import nnsight
import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

import eah_interp as eah
from eah_interp.errors import InputError
from eah_interp.lvlm.inputs import image_placeholder
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_folder,
    tiny_lvlm,
    tiny_processor,
)
from tests.alignment import share_tensors
from tests.tiny_families import measure_gap

RED, BLUE, TALL = (
    random_image(0),
    random_image(1),
    random_image(2, width=20, height=44),
)


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.fixture(scope="module")
def image_token(model):
    return model.anatomy.image_token_id


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


@pytest.mark.parametrize(
    "kind", ["path", "str path", "uint8", "float", "channels first", "tensor", "int"]
)
def test_every_kind_of_image_is_the_same_picture(model, tmp_path, kind):
    path = tmp_path / "picture.png"
    TALL.save(path)
    array = np.asarray(TALL)
    image = {
        "path": path,
        "str path": str(path),
        "uint8": array,
        "float": array / 255,
        "channels first": array.transpose(2, 0, 1),
        "tensor": torch.tensor(array).permute(2, 0, 1) / 255,
        "int": torch.tensor(array).long(),
    }[kind]
    assert same(model.encode(image, "what ?"), model.encode(TALL, "what ?"))


def test_grey_and_transparent_pictures_become_rgb(model):
    for mode in ("L", "RGBA", "P", "1"):
        encoding = model.encode(TALL.convert(mode), "what ?")
        assert encoding["pixel_values"].shape[1] == 3
    grey = np.asarray(TALL.convert("L"))
    assert same(model.encode(grey, "what ?"), model.encode(TALL.convert("L"), "what ?"))


def test_a_list_of_images_with_one_prompt_is_a_row_each(model, image_token):
    encoding = model.encode([RED, BLUE, TALL], "what ?")
    assert encoding["input_ids"].shape[0] == 3
    assert (encoding["input_ids"] == image_token).sum(-1).tolist() == [16, 16, 16]
    single = model.encode(BLUE, "what ?")
    assert torch.equal(encoding["pixel_values"][1:2], single["pixel_values"])


def test_images_and_prompts_are_paired_and_padded_on_the_left(model):
    encoding = model.encode([RED, BLUE], ["what ?", "is there a cat near the boat ?"])
    mask = encoding["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist())
    assert mask.sum(-1)[0] < mask.sum(-1)[1] == mask.shape[1]
    alone = model.encode(RED, "what ?")
    assert torch.equal(encoding["input_ids"][0][mask[0].bool()], alone["input_ids"][0])


def test_one_image_is_asked_several_prompts(model):
    encoding = model.encode(RED, ["what ?", "is there a cat ?"])
    assert torch.equal(encoding["pixel_values"][0], encoding["pixel_values"][1])


def test_several_images_stand_in_one_prompt(model, image_token):
    for images, prompt in (
        ([RED, BLUE], "<image> and <image> ?"),
        ([[RED, BLUE]], "what ?"),
    ):
        encoding = model.encode(images, prompt)
        assert encoding["input_ids"].shape[0] == 1
        assert (encoding["input_ids"] == image_token).sum() == 32
        spans = model.spans(encoding)
        assert [span.image for span in spans[0]] == [0, 1]


def test_placeholders_are_shared_out_among_prompts(model, image_token):
    encoding = model.encode([RED, BLUE, TALL], ["<image> <image> ?", "<image> ?"])
    assert (encoding["input_ids"] == image_token).sum(-1).tolist() == [32, 16]


def test_a_prompt_goes_through_the_chat_template(model):
    text = model.tokenizer.decode(model.encode(RED, "what ?")["input_ids"][0])
    template = model.processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "what ?"}],
            }
        ],
        add_generation_prompt=True,
    )
    expected = model.processor(images=[[RED]], text=[template], return_tensors="pt")
    assert text == model.tokenizer.decode(expected["input_ids"][0])


@pytest.mark.parametrize(
    "prompt", ["USER: what ? ASSISTANT:", "what ? ASSISTANT: ", "USER: ASSISTANT:"]
)
def test_a_prompt_that_is_written_out_without_its_image_is_refused(model, prompt):
    """Turns were written around it a second time: USER: USER: what ? ASSISTANT: ..."""
    for run in (model.encode, model.describe):
        with pytest.raises(InputError, match=r"ends in 'ASSISTANT:'.*'<image>' in it"):
            run(RED, prompt)
    written = f"USER: <image> {prompt.removeprefix('USER: ')}"
    assert "pixel_values" in model.encode(RED, written)
    turns = [{"role": "user", "content": prompt}]  # who says so means it
    assert "pixel_values" in model.encode(RED, turns)


def test_without_a_chat_template_the_image_stands_before_the_prompt():
    processor = tiny_processor("llava")
    processor.chat_template = None
    bare = eah.wrap(tiny_lvlm("llava"), processor)
    expected = processor(images=[[RED]], text=["<image>\nwhat ?"], return_tensors="pt")
    found = bare.encode(RED, "what ?")
    assert torch.equal(found["input_ids"], expected["input_ids"])


TEXT_CHAT = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TRIMMED_CHAT = TEXT_CHAT.replace("m.content", "(m.content | trim)")


def with_templates(on_tokenizer, on_processor=None):
    processor = tiny_processor("llava")
    processor.chat_template = on_processor
    processor.tokenizer.chat_template = on_tokenizer
    return eah.wrap(tiny_lvlm("llava"), processor)


@pytest.mark.parametrize("named", [False, True])
def test_the_tokenizer_s_chat_template_is_used_where_it_is_the_only_one(model, named):
    template = model.processor.chat_template
    fine_tuned = with_templates({"default": template} if named else template)
    assert same(fine_tuned.encode(RED, "what ?"), model.encode(RED, "what ?"))
    assert same(
        with_templates(TEXT_CHAT, template).encode(RED, "what ?"),
        model.encode(RED, "what ?"),
    )


@pytest.mark.parametrize("template", [TEXT_CHAT, TRIMMED_CHAT])
def test_a_tokenizer_s_template_of_text_gets_the_placeholder_in_it(template):
    fine_tuned = with_templates(template)
    expected = fine_tuned.processor(
        images=[[RED]], text=["user: <image>\nwhat ?\nassistant:"], return_tensors="pt"
    )
    assert same(fine_tuned.encode(RED, "what ?"), {**expected})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no user here') }}", "does not take.*no user here"),
        ("hello", "leaves the prompt out"),
        ("{% if %}", "does not take"),
        (
            {"rag": "{{ 1 }}", "tools": ""},
            "one named 'default', got 'rag', 't",
        ),
    ],
)
def test_a_template_that_takes_no_prompt_is_refused(template, message):
    with pytest.raises(InputError, match=message):
        with_templates(template).encode(RED, "what ?")


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_template_that_writes_the_start_token_does_not_double_it(family):
    processor = tiny_processor(family)
    tokenizer = processor.tokenizer
    plain = eah.wrap(tiny_lvlm(family), processor).encode(RED, "what ?")["input_ids"]
    assert plain[0, 0] == tokenizer.bos_token_id
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    doubled = eah.wrap(tiny_lvlm(family), processor).encode(RED, "what ?")["input_ids"]
    assert torch.equal(doubled, plain)


def test_an_image_alone_is_described(model):
    assert same(model.encode(RED), model.encode(RED, "Describe the image."))


def logits_of(model, *args, **kwargs):
    with torch.no_grad(), model.trace(*args, **kwargs):
        logits = model.output.logits.save()
    return logits


def test_every_form_that_nnsight_takes_still_works(model):
    encoding = model.encode(RED, "what ?")
    expected = logits_of(model, RED, "what ?")
    assert torch.equal(logits_of(model, **encoding), expected)
    assert torch.equal(logits_of(model, encoding), expected)
    text = "is there a cat ?"
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    assert torch.equal(logits_of(model, text), logits_of(model, input_ids=ids))
    assert torch.equal(logits_of(model, ids), logits_of(model, input_ids=ids))
    prompt = "<image> what ?"
    named = logits_of(model, text=prompt, images=[RED])
    assert torch.equal(logits_of(model, prompt, images=[RED]), named)
    assert torch.equal(logits_of(model, RED, prompt), named)


def test_scan_gives_shapes_without_numbers(model):
    with model.scan(RED, "what ?"):
        patch = eah.intervene(model)
        shape = nnsight.save(model.output.logits.shape)
        density = nnsight.save(patch.density.shape)
    assert tuple(shape) == tuple(logits_of(model, RED, "what ?").shape)
    assert tuple(density) == (1, 4)


def test_cache_and_session_work_with_an_intervention(model):
    layer = model.model.language_model.layers[1]
    with torch.no_grad(), model.trace(RED, "what ?") as tracer:
        cache = tracer.cache(modules=[layer])
        eah.intervene(model)
        output = layer.output.save()
    assert torch.equal(cache[layer.path].output, output)
    with torch.no_grad(), model.session():
        with model.trace(RED, "what ?"):
            first = eah.intervene(model)
        with model.trace(RED, "what ?"):
            second = eah.intervene(model, eah.EAH(donor=first.donors[0].item()))
            logits = model.output.logits.save()
    assert second.donors.tolist() == first.donors.tolist()
    with torch.no_grad(), model.trace(RED, "what ?"):
        eah.intervene(model)
        expected = model.output.logits.save()
    assert torch.equal(logits, expected)


def test_generate_returns_ids_and_describe_returns_text(model):
    encoding = model.encode([RED, BLUE], "what ?")
    ids = model.generate(**encoding, max_new_tokens=4, do_sample=False)
    direct = model.generate([RED, BLUE], "what ?", max_new_tokens=4, do_sample=False)
    assert torch.equal(ids, direct)
    with model.generate(
        [RED, BLUE], "what ?", max_new_tokens=4, do_sample=False
    ) as tracer:
        traced = tracer.result.save()
    assert torch.equal(ids, traced)
    new = ids[:, encoding["input_ids"].shape[1] :]
    texts = model.processor.batch_decode(new, skip_special_tokens=True)
    found = model.describe([RED, BLUE], "what ?", max_new_tokens=4, do_sample=False)
    assert found == [text.strip() for text in texts]
    one = model.describe(RED, "what ?", max_new_tokens=4, do_sample=False)
    assert one == found[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_loads_back_and_gives_the_same_logits(tmp_path, dtype):
    folder = tiny_folder(tmp_path, "llava", n_kv_heads=2)
    loaded = eah.load(folder, dtype=dtype, attn_implementation="eager")
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded._module.config._attn_implementation == "eager"
    assert (loaded.n_layers, loaded.n_heads, loaded.n_kv_heads, loaded.d_head) == (
        3,
        4,
        2,
        8,
    )
    plain = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    share_tensors(plain, loaded._module)
    encoding = loaded.encode(RED, "what ?")
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, **encoding), plain(**encoding).logits)


def test_a_device_map_is_followed(tmp_path):
    loaded = eah.load(tiny_folder(tmp_path, "llava"), device_map="cpu")
    assert loaded.device.type == "cpu"
    with torch.no_grad(), loaded.trace(RED, "what ?"):
        patch = eah.intervene(loaded)
    assert patch.donors.device.type == "cpu"


DRIVEN = [
    name
    for name, family in FAMILIES.items()
    if not family.refused and not family.no_processor
]


@pytest.mark.parametrize("family", DRIVEN)
def test_every_family_loads_back_from_a_folder(tmp_path, family):
    loaded = eah.load(tiny_folder(tmp_path, family))
    wrapped = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    encoding = wrapped.encode(TALL, "what ?")
    assert same(loaded.encode(TALL, "what ?"), encoding)
    expected = logits_of(wrapped, **encoding)
    assert measure_gap(logits_of(loaded, **encoding), expected) <= 1e-5
    share_tensors(loaded._module, wrapped._module)
    assert torch.equal(logits_of(loaded, **encoding), expected)


@pytest.mark.parametrize("family", DRIVEN)
def test_every_image_column_has_a_place_in_the_picture_or_none(family):
    model = eah.wrap(tiny_lvlm(family), tiny_processor(family))
    encoding = model.encode([RED, TALL], "what ?")
    for (span,) in model.spans(encoding):
        places = [span.place(column) for column in span.columns]
        found = [place for place in places if place is not None]
        assert bool(found) == span.spatial
        for left, top, right, bottom in found:
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1


def test_several_images_in_a_row_keep_their_own_sizes(model):
    spans = model.spans(model.encode([[RED, TALL], [BLUE]], "what ?"))
    assert [len(row) for row in spans] == [2, 1]
    assert spans[0][0].place(spans[0][0].columns[0])[1] == 0
    # The processor crops the middle of the tall picture.
    assert spans[0][1].place(spans[0][1].columns[0])[1] > 0


def test_a_processor_s_image_token_stands_for_an_image_before_its_begin_marker():
    both = SimpleNamespace(image_token="<image>", boi_token="<start>")
    assert image_placeholder(both) == "<image>"
    assert image_placeholder(SimpleNamespace(boi_token="<start>")) == "<start>"
    assert image_placeholder(SimpleNamespace()) is None
    gemma = tiny_processor("gemma3")
    assert image_placeholder(gemma) == "<start_of_image>"
