"""Claims about messages: a chat is read as transformers reads it, wherever one goes."""

import base64
import io

import pandas as pd
import pytest
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.attribution import (
    attribute_heads,
    attribute_patches,
    logit_lens,
    patch_heads,
    read_patterns,
)
from eah_interp.errors import InputError
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_lvlm,
    tiny_processor,
)

RED, BLUE = random_image(0), random_image(1, width=20, height=44)
BLACK = Image.new("RGB", RED.size)
IMAGE = {"type": "image"}
WITH_TEMPLATE = [
    name
    for name, family in FAMILIES.items()
    if not family.refused
    and not family.no_processor
    and getattr(tiny_processor(name), "chat_template", None)
]


def say(text):
    return {"type": "text", "text": text}


def user(*content):
    return {"role": "user", "content": list(content)}


def show(image):
    return {"type": "image", "image": image}


CHATS = {
    "one turn": [user(show(RED), say("what ?"))],
    "a system prompt and several turns": [
        {"role": "system", "content": [say("be brief")]},
        user(show(RED), say("what ?")),
        {"role": "assistant", "content": [say("a cat")]},
        user(say("and"), show(BLUE), say("where ?")),
    ],
    "an answer begun": [
        {"role": "system", "content": "be brief"},
        user(show(RED), say("what ?")),
        {"role": "assistant", "content": "a cat and"},
    ],
}


def without_images(chat):
    """Leave the places of a chat's images empty."""
    return [
        turn
        if isinstance(turn["content"], str)
        else {**turn, "content": [IMAGE if p["type"] == "image" else p for p in parts]}
        for turn in chat
        for parts in [turn["content"]]
    ]


def images_of(chat):
    turns = [turn["content"] for turn in chat if not isinstance(turn["content"], str)]
    return [part["image"] for parts in turns for part in parts if "image" in part]


def apply(processor, chat, **kwargs):
    """Encode a chat as transformers alone does."""
    continues = chat[-1]["role"] == "assistant"
    return processor.apply_chat_template(
        chat,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=not continues,
        continue_final_message=continues,
        **kwargs,
    )


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key].to(one[key].dtype))
        if isinstance(one[key], torch.Tensor)
        else one[key] == other[key]
        for key in one
    )


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


@pytest.mark.parametrize("begins", [False, True], ids=["bare", "with start token"])
@pytest.mark.parametrize("family", WITH_TEMPLATE)
def test_tokens_and_pixels_are_those_of_apply_chat_template(family, begins):
    processor = tiny_processor(family)
    if begins:  # as many real templates do
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    wrapped = eah.wrap(tiny_lvlm(family), processor, verify=False)
    for chat in CHATS.values():
        expected = apply(processor, chat)
        assert same(wrapped.encode(chat), expected)
        beside = images_of(chat)
        assert same(wrapped.encode([beside], without_images(chat)), expected)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_numbers_are_those_of_the_text_written_out(model, chat):
    text = model.processor.apply_chat_template(
        chat,
        add_generation_prompt=chat[-1]["role"] != "assistant",
        continue_final_message=chat[-1]["role"] == "assistant",
    )
    written = model.encode([images_of(chat)], text)
    with torch.no_grad(), model.trace(**written):
        patch = eah.intervene(model, eah.EAH())
        expected = model.output.logits.save()
    with torch.no_grad(), model.trace(chat):
        told = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()
    assert torch.equal(logits, expected)
    assert torch.equal(told.density, patch.density)


def logits_of(model, *args, **kwargs):
    with torch.no_grad(), model.trace(*args, **kwargs):
        logits = model.output.logits.save()
    return logits


def test_every_way_of_giving_a_chat_is_the_same(model):
    inside, places = CHATS["one turn"], without_images(CHATS["one turn"])
    expected = logits_of(model, inside)
    assert torch.equal(logits_of(model, None, inside), expected)
    assert torch.equal(logits_of(model, RED, places), expected)
    assert torch.equal(logits_of(model, places, images=RED), expected)
    assert torch.equal(logits_of(model, RED, "what ?"), expected)
    plain = [{"role": "user", "content": "what ?"}]
    assert torch.equal(logits_of(model, RED, plain), expected)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(inside):
            first = model.output.logits[:, -1].save()
        with tracer.invoke(RED, [places, places]):
            more = model.output.logits[:, -1].save()
    assert first.shape[0] == 1
    assert more.shape[0] == 2
    torch.testing.assert_close(first, expected[:, -1])
    torch.testing.assert_close(more[1], expected[0, -1])
    ids = model.generate(RED, places, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, model.generate(inside, max_new_tokens=3, do_sample=False))
    with model.scan(inside):
        model.output.logits.save()


def test_what_asks_of_an_image_takes_a_chat(model):
    inside = CHATS["one turn"]
    places, asked = without_images(inside), {"objects": ["cat"]}
    for call in (
        lambda *given: eah.score_sinks(model, *given),
        lambda *given: attribute_heads(model, *given, **asked),
        lambda *given: attribute_patches(model, *given, **asked),
        lambda *given: logit_lens(model, *given, **asked),
        lambda *given: patch_heads(
            model, *given, source="plain", source_images=BLACK, **asked
        ),
        lambda *given: read_patterns(model, *given, heads=["L1H2"]),
    ):
        pd.testing.assert_frame_equal(
            call(RED, places).frame(), call(RED, "what ?").frame()
        )
    for call in (
        lambda *given: eah.score_sinks(model, *given),
        lambda *given: attribute_heads(model, *given, **asked),
        lambda *given: read_patterns(model, *given, heads=["L1H2"]),
    ):
        pd.testing.assert_frame_equal(call(inside).frame(), call(RED, "what ?").frame())
    other = [user(show(BLACK), say("what ?"))]
    told = patch_heads(model, inside, source="plain", source_images=other, **asked)
    plain = patch_heads(
        model, RED, "what ?", source="plain", source_images=BLACK, **asked
    )
    pd.testing.assert_frame_equal(told.frame(), plain.frame())


def test_other_images_do_not_take_the_place_of_those_in_a_chat(model):
    with pytest.raises(InputError, match="0 places for 1 images"):
        patch_heads(
            model,
            CHATS["one turn"],
            source="plain",
            source_images=BLACK,
            objects=["cat"],
        )


def test_one_chat_is_one_prompt_and_a_list_of_chats_a_batch(model):
    inside = CHATS["one turn"]
    short = {"max_new_tokens": 4, "do_sample": False}
    one = model.describe(inside, **short)
    assert one == model.describe(RED, "what ?", **short)
    places = without_images(inside)
    assert model.describe(RED, places, **short) == one
    many = model.describe([inside, [user(show(BLUE), say("where ?"))]], **short)
    assert many == model.describe([RED, BLUE], ["what ?", "where ?"], **short)
    # A chat beside a text, an image for each; one chat asked of two images.
    mixed = model.encode([RED, BLUE], [places, "where ?"])
    assert same(mixed, model.encode([RED, BLUE], ["what ?", "where ?"]))
    asked = model.encode([RED, BLUE], places)
    assert same(asked, model.encode([RED, BLUE], "what ?"))


def test_images_beside_a_chat_fill_its_empty_places_in_order(model):
    chat = [user(show(RED), IMAGE, say("what ?"))]
    full = [user(show(RED), show(BLUE), say("what ?"))]
    assert same(model.encode(BLUE, chat), model.encode(full))
    two = [user(IMAGE, IMAGE, say("what ?"))]
    assert same(model.encode([RED, BLUE], two), model.encode(full))
    # Dealt out: one chat holds its image, the other has a place.
    dealt = model.encode([BLUE], [CHATS["one turn"], [user(IMAGE, say("where ?"))]])
    assert same(dealt, model.encode([RED, BLUE], ["what ?", "where ?"]))
    written = [{"role": "user", "content": "<image> what ?"}]
    assert same(model.encode(RED, written), model.encode(RED, [user(*written_parts())]))


def written_parts():
    return IMAGE, say(" what ?")


@pytest.mark.parametrize("key", ["image", "path", "url", "image_url", "base64"])
def test_images_in_a_chat_are_given_as_transformers_takes_them(model, tmp_path, key):
    file = tmp_path / "picture.png"
    RED.save(file)
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    part = {
        "image": {"type": "image", "image": file},
        "path": {"type": "image", "path": str(file)},
        "url": {"type": "image", "url": str(file), "text": None},
        "image_url": {"type": "image_url", "image_url": {"url": str(file)}},
        "base64": {
            "type": "image",
            "base64": base64.b64encode(buffer.getvalue()).decode(),
        },
    }[key]
    chat = [user(part, say("what ?"))]
    before = repr(chat)
    assert same(model.encode(chat), model.encode(RED, "what ?"))
    assert repr(chat) == before


REFUSED = {
    "a URL": ([user({"type": "image", "url": "https://a.b/c.png"})], "a URL.*download"),
    "broken base64": ([user({"type": "image", "base64": "!"})], "'base64' cannot be"),
    "no image": ([user(say("what ?"))], "no image was given"),
    "an empty place": ([user(IMAGE, say("what ?"))], "no image was given"),
    "one place too many": (
        [user(show(RED), IMAGE, say("what ?"))],
        r"1 places for 0 images beside them \(and hold 1\)",
    ),
    "a single message": (user(show(RED)), r"expected a list of messages.*write \["),
    "no role": ([user(show(RED)), {"content": "what ?"}], "message 1 has no role"),
    "no content": ([{"role": "user"}], "content of message 0 .user. is None"),
    "a part without type": ([user({"text": "what ?"})], "part 0 of message 0 has no"),
    "a video": ([user({"type": "video"})], "type 'video': expected 'text' or 'image'"),
    "text without text": ([user({"type": "text"})], "is text without a text"),
    "two images in one": (
        [user({"type": "image", "image": RED, "path": "a.png"})],
        "image under image and path: expected one",
    ),
    "no file": ([user({"type": "image", "path": "no.png"})], "no image file at no.png"),
}


@pytest.mark.parametrize(("chat", "message"), REFUSED.values(), ids=REFUSED)
def test_a_chat_that_is_none_is_refused_by_name(model, chat, message):
    for call in (model.encode, model.describe, lambda c: eah.score_sinks(model, c)):
        with pytest.raises(InputError, match=message):
            call(chat)


def test_images_and_places_that_do_not_match_are_refused(model):
    two = [user(IMAGE, IMAGE, say("what ?"))]
    with pytest.raises(InputError, match="2 places for 1 images beside them"):
        model.encode(RED, two)
    with pytest.raises(InputError, match=r"0 places for 1 images.*hold 1"):
        model.encode(BLUE, CHATS["one turn"])
    with pytest.raises(InputError, match="messages alone, got messages first"):
        model.encode(CHATS["one turn"], "what ?")
    with pytest.raises(InputError, match="2 images for 3 prompts"):
        model.encode([RED, BLUE], [without_images(CHATS["one turn"])] * 3)
    with pytest.raises(InputError, match="no turn of the user"):
        model.encode(RED, [{"role": "system", "content": "be brief"}])
    with pytest.raises(InputError, match="a prompt has no image"):
        model.encode([CHATS["one turn"], [user(say("what ?"))]])


def test_chats_without_a_template_are_refused():
    processor = tiny_processor("llava")
    processor.chat_template = None
    bare = eah.wrap(tiny_lvlm("llava"), processor, verify=False)
    with pytest.raises(InputError, match="no chat template, so messages cannot be"):
        bare.encode(CHATS["one turn"])


# ---- Templates that take their messages in another form.


CONCATENATES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TRIMS = CONCATENATES.replace("m.content +", "(m.content | trim) +")
TEXT_PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PARTS = TEXT_PARTS.replace(
    "{% if p.t", "{% if p.type == 'image' %}<image>\n{% elif p.t"
)


@pytest.mark.parametrize("where", ["processor", "tokenizer"])
@pytest.mark.parametrize("template", [CONCATENATES, TRIMS, TEXT_PARTS, PARTS])
def test_a_template_gets_messages_in_the_form_that_it_takes(template, where):
    processor = tiny_processor("llava")
    processor.chat_template = template if where == "processor" else None
    processor.tokenizer.chat_template = template if where == "tokenizer" else None
    wrapped = eah.wrap(tiny_lvlm("llava"), processor, verify=False)
    text = "system: be brief\nuser: <image>\nwhat ?\nassistant: a cat\nuser: where ?\n"
    expected = processor(
        images=[[RED]], text=[text + "assistant:"], return_tensors="pt"
    )
    chat = [
        {"role": "system", "content": "be brief"},
        user(show(RED), say("what ?")),
        {"role": "assistant", "content": "a cat"},
        user(say("where ?")),
    ]
    assert same(wrapped.encode(chat), {**expected})
    simple = processor(
        images=[[RED]],
        text=["user: <image>\nwhat ?\nassistant:"],
        return_tensors="pt",
    )
    assert same(wrapped.encode(RED, "what ?"), {**simple})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system here') }}", "does not take.*no system here"),
        ("{{ messages[0].content[0].type }}", "leaves the prompt out"),
        (
            "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}"
            "{{ p.text | replace('<image>', '') }}{% endif %}{% endfor %}{% endfor %}",
            "writes no place for each image: expected 1 <image>",
        ),
        ("{% if %}", "processor's chat template does not take"),
    ],
)
def test_a_processor_s_template_that_loses_something_is_refused(template, message):
    processor = tiny_processor("llava")
    processor.chat_template = template
    wrapped = eah.wrap(tiny_lvlm("llava"), processor, verify=False)
    for given in ((RED, "what ?"), (CHATS["one turn"],)):
        with pytest.raises(InputError, match=message):
            wrapped.encode(*given)
