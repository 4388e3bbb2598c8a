"""Claims about what is said: captions, questions, tokens."""

from collections import Counter

import numpy as np
import pytest

import eah_interp as eah
from eah_interp.errors import SettingsError
from eah_interp.toy import (
    OBJECTS,
    World,
    build_tokenizer,
    draw_scenes,
    objects_in,
    prompt_for,
    questions_for,
)
from eah_interp.toy.language import (
    CAPTION_PROMPTS,
    CAPTIONS,
    QUESTIONS,
    SAMPLINGS,
    SPLIT_WORDS,
    ask_for,
    build_processor,
    caption_of,
)
from eah_interp.toy.training.stages import (
    IGNORED,
    OBJECT_IDS,
    converse_caption,
    converse_questions,
    encode,
)
from eah_interp.toy.world import group_of


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_half_of_the_questions_are_about_absent_objects(sampling):
    for scene in draw_scenes(range(40)):
        asked = questions_for(scene, sampling=sampling, pairs=2)
        assert sum(q.answer for q in asked) * 2 == len(asked)
        assert all((q.object in scene.objects) == q.answer for q in asked)
        assert all(q.object in q.text for q in asked)
        assert len({q.object for q in asked}) == len(asked)


def test_adversarial_questions_ask_for_what_usually_comes_along():
    def share_of_group(sampling):
        same = [
            any(group_of(q.object) == group_of(name) for name in scene.objects)
            for scene in draw_scenes(range(120))
            for q in questions_for(scene, sampling=sampling)
            if not q.answer
        ]
        return sum(same) / len(same)

    assert share_of_group("adversarial") > 0.8
    assert share_of_group("random") < 0.4


def test_popular_questions_ask_for_frequent_objects():
    asked = Counter(
        q.object
        for scene in draw_scenes(range(120))
        for q in questions_for(scene, sampling="popular")
        if not q.answer
    )
    assert {name for name, _ in asked.most_common(3)} <= {"boat", "tree", "fish", "cup"}


def test_an_unknown_sampling_is_refused(as_users_run_it):
    with pytest.raises(SettingsError, match="sampling: expected one of"):
        questions_for(draw_scenes([0])[0], sampling="hard")


def test_captions_name_their_objects():
    for template in CAPTIONS:
        assert objects_in(caption_of(OBJECTS[:4], template=template)) == OBJECTS[:4]
    assert objects_in(caption_of(["moon"])) == ("moon",)


def test_text_survives_the_tokenizer(tokenizer):
    texts = [
        *CAPTION_PROMPTS,
        *(caption_of(OBJECTS, template=template) for template in CAPTIONS),
        *(ask_for(name, template=q) for q in QUESTIONS for name in OBJECTS),
        "Words it never saw: a 37-year-old zebra (striped)!",
        "two\nlines",
    ]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids


def test_known_words_are_one_token_and_some_objects_two(tokenizer):
    for name in OBJECTS:
        pieces = tokenizer.tokenize(name)
        assert len(pieces) == (2 if name in SPLIT_WORDS else 1)
        # the same inside a sentence, where the leading space is a real one
        assert "".join(pieces) in "".join(tokenizer.tokenize(f"I see a {name}."))
    assert len(set(OBJECT_IDS)) == len(OBJECTS)


def test_the_chat_template_speaks_as_llava_does():
    processor = build_processor(World())
    content = [{"type": "image"}, {"type": "text", "text": "Is there a boat?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == prompt_for("Is there a boat?")
    answered = [*chat, {"role": "assistant", "content": "No"}]
    text = processor.apply_chat_template(answered)
    assert text == "USER: <image>\nIs there a boat? ASSISTANT: No</s>"


def test_a_system_prompt_stands_before_the_user_and_is_no_answer():
    processor = eah.load().processor
    assert processor.chat_template == build_processor(World()).chat_template
    chat = [{"role": "system", "content": "Be brief."}]
    chat += [{"role": "user", "content": [{"type": "image"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "Be brief. USER: <image>\n ASSISTANT:"


def test_training_ids_are_the_processor_s_ids():
    processor = build_processor(World())
    (scene,) = draw_scenes([3])
    conversation = converse_questions(scene.objects, rng=np.random.default_rng(0))
    batch = encode([conversation], images=np.full((1, 100), 4))
    expected = processor(images=scene.pil(), text=conversation)["input_ids"][0]
    assert batch.input_ids[0].tolist() == list(expected)


def test_the_loss_is_taken_on_answers_only(tokenizer):
    rng = np.random.default_rng(0)
    conversations = [
        converse_caption(["boat", "butterfly"], rng=rng),
        converse_questions(["boat", "fish"], rng=rng),
    ]
    batch = encode(conversations, images=np.full((2, 100), 4))
    for conversation, labels in zip(conversations, batch.labels, strict=True):
        said = tokenizer.decode(labels[labels != IGNORED])
        expected = "".join(
            part.split("</s>")[0] + "</s>"
            for part in conversation.split("ASSISTANT:")[1:]
        )
        assert said.replace(" ", "") == expected.replace(" ", "")


def test_answers_in_training_are_balanced_and_true():
    rng = np.random.default_rng(0)
    counts = Counter()
    for scene in draw_scenes(range(300), split="train"):
        turns = converse_questions(scene.objects, rng=rng).split("</s>")[:-1]
        for turn in turns:
            asked = objects_in(turn)[0]
            answer = turn.split("ASSISTANT: ")[1]
            assert answer == ("Yes" if asked in scene.objects else "No")
            counts[answer] += 1
    assert abs(counts["Yes"] / counts.total() - 0.5) < 0.07


@pytest.mark.parametrize("number", [10**6 + 1, 2**31, -1, 1.5, "1"])
def test_a_prompt_that_would_fill_the_memory_is_refused(number, as_users_run_it):
    with pytest.raises(SettingsError, match="image_tokens must be"):
        prompt_for("Is there a boat?", image_tokens=number)
