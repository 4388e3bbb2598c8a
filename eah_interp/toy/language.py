"""What is said about scenes: captions, yes/no questions, POPE-like question sets."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from eah_interp.arguments import by_name, check_kind, check_text
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_integer, to_list
from eah_interp.toy.render import Scene
from eah_interp.toy.world import COLOURS, OBJECTS, POPULARITY, World, draw_objects

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"

Sampling: TypeAlias = Literal["random", "popular", "adversarial"]

SAMPLINGS: tuple[Sampling, ...] = ("random", "popular", "adversarial")

CAPTION_PROMPTS = (
    "Describe the image.",
    "What is in the image?",
    "What can you see?",
)

CAPTIONS = (
    "There is {objects} in the image.",
    "The image shows {objects}.",
    "This is a picture of {objects}.",
    "I can see {objects}.",
)

QUESTIONS = (
    "Is there a {object} in the image?",
    "Is there a {object}?",
    "Can you see a {object}?",
    "Does the image show a {object}?",
)
"""The first is the one that `questions_for` asks, and half of those in training."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's manner: `USER: <image> ... ASSISTANT:`; the image precedes the text, and
a system prompt stands before all of it, under no name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A yes/no question about one scene, and its true answer.

    Attributes:
        text: The question, without chat template.
        object: The object asked for.
        answer: Whether the object is in the scene.
    """

    text: str
    object: str
    answer: bool


MOST_TOKENS = 1_000_000
"""More image tokens in one prompt are a slip: the text would fill the memory."""


def ask_for(name: str, *, template: str = QUESTIONS[0]) -> str:
    """Ask whether an object is in the image.

    Example:
        >>> ask_for("boat")
        'Is there a boat in the image?'
    """
    check_text("name", name)
    return template.format(object=name)


def answer_word(present: bool) -> str:  # noqa: FBT001 - the fact itself, not a mode
    """Return the answer: "Yes" or "No"."""
    return "Yes" if present else "No"


@by_name
def prompt_for(text: str, *, image_tokens: int = 1) -> str:
    r"""Return the single-turn prompt that the chat template makes of a question.

    Raises:
        SettingsError: If `image_tokens` is no integer of 0 to a million.
        InputError: If the question is no text.

    Example:
        >>> prompt_for("Is there a boat?")
        'USER: <image>\nIs there a boat? ASSISTANT:'
    """
    check_text("text", text)
    image_tokens = check_integer("image_tokens", image_tokens)
    if image_tokens > MOST_TOKENS:
        msg = f"image_tokens must be at most {MOST_TOKENS:,}, got {image_tokens}"
        raise SettingsError(msg)
    return f"USER: {IMAGE_TOKEN * image_tokens}\n{text} ASSISTANT:"


def caption_of(objects: Sequence[str], *, template: str = CAPTIONS[0]) -> str:
    """Name the objects in one sentence.

    Args:
        objects: At least one name, in the order to be said.
        template: One of `CAPTIONS`.

    Returns:
        The caption.

    Example:
        >>> caption_of(["boat", "fish", "tree"])
        'There is a boat, a fish and a tree in the image.'
    """
    listed_names = to_list(objects)
    if not listed_names or not all(isinstance(name, str) for name in listed_names):
        got = show_value(objects)
        raise InputError(f"objects must be a list of one name or more, got {got}")
    phrases = [f"a {name}" for name in objects]
    listed = ", ".join(phrases[:-1])
    joined = f"{listed} and {phrases[-1]}" if listed else phrases[-1]
    return template.format(objects=joined)


def mentions_in(text: str) -> tuple[str, ...]:
    """Find the objects a text names, each time it does.

    Example:
        >>> mentions_in(" There is a boat, a tree and a boat.")
        ('boat', 'tree', 'boat')
    """
    check_text("text", text)
    return tuple(name for name, _ in find_mentions_in(text))


def find_mentions_in(text: str) -> tuple[tuple[str, int], ...]:
    """Find the objects a text names, each time it does, with where it does.

    Example:
        >>> find_mentions_in("a boat, a tree")
        (('boat', 2), ('tree', 10))
    """
    words = "".join(c if c.isalpha() else " " for c in text)
    return tuple(
        (found.group(), found.start())
        for found in re.finditer(r"\S+", words)
        if found.group() in OBJECTS
    )


@by_name
def objects_in(text: str) -> tuple[str, ...]:
    """Find the objects a text names, each once, in order of first mention.

    Example:
        >>> objects_in(" There is a boat, a tree and a boat.")
        ('boat', 'tree')
    """
    return tuple(dict.fromkeys(mentions_in(text)))


@functools.cache
def co_occurrence(
    *, prior: float = 0.85, draws: int = 4_000
) -> tuple[tuple[int, ...], ...]:
    """Count how often two objects share a scene, over seeded draws.

    Args:
        prior: Strength of the co-occurrence prior.
        draws: Number of drawn object sets.

    Returns:
        A symmetric matrix in the order of `OBJECTS`; the diagonal counts the object.
    """
    rng = np.random.default_rng(0)
    counts = np.zeros((len(OBJECTS), len(OBJECTS)), dtype=np.int64)
    for _ in range(draws):
        names = draw_objects(rng, prior=prior)
        present = [OBJECTS.index(name) for name in names]
        counts[np.ix_(present, present)] += 1
    return tuple(tuple(int(v) for v in row) for row in counts)


@by_name
def questions_for(
    scene: Scene, *, sampling: Sampling = "random", pairs: int = 1, seed: int = 0
) -> tuple[Question, ...]:
    """Ask about a scene as POPE does: as many absent objects as present ones.

    Present objects are drawn uniformly. Absent ones are drawn by `sampling`: uniformly
    ("random"), the most frequent of the world ("popular"), or those that most often
    share a scene with the objects that are there ("adversarial").
    Source: Li et al., "Evaluating Object Hallucination in LVLMs", 2023.

    Args:
        scene: The scene.
        sampling: How absent objects are chosen.
        pairs: Number of yes/no pairs, at most the number of objects in the scene.
        seed: Seeds the draw together with the scene's own seed.

    Returns:
        Questions, a "Yes" and a "No" in turn.

    Raises:
        SettingsError: Unknown `sampling`, or `pairs` or `seed` no integer >= 0.
        InputError: `scene` is no scene.

    Example:
        >>> from eah_interp.toy import draw_scene
        >>> scene = draw_scene(0, objects=["boat"])
        >>> [q.answer for q in questions_for(scene)]
        [True, False]
    """
    check_kind("scene", scene, Scene, expected="a Scene, as draw_scene gives it")
    if not isinstance(sampling, str) or sampling not in SAMPLINGS:
        got = show_value(sampling)
        raise SettingsError(f"sampling: expected one of {SAMPLINGS}, got {got}")
    pairs, seed = check_integer("pairs", pairs), check_integer("seed", seed)
    rng = np.random.default_rng((scene.seed, seed, 2))
    pairs = min(pairs, len(scene.objects))
    present = rng.permutation(np.array(scene.objects))[:pairs].tolist()
    absent = [name for name in OBJECTS if name not in scene.objects]
    order = rng.permutation(len(absent))
    if sampling == "popular":
        weights = np.array([POPULARITY[OBJECTS.index(name)] for name in absent])
        order = order[np.argsort(-weights[order], kind="stable")]
    elif sampling == "adversarial":
        counts = np.array(co_occurrence(prior=scene.world.prior))
        there = [OBJECTS.index(name) for name in scene.objects]
        share = (counts / counts.diagonal()[:, None])[there].sum(axis=0)
        weights = np.array([share[OBJECTS.index(name)] for name in absent])
        order = order[np.argsort(-weights[order], kind="stable")]
    questions = []
    for name, index in zip(present, order[:pairs].tolist(), strict=True):
        for asked, answer in ((name, True), (absent[index], False)):
            text = ask_for(asked)
            questions.append(Question(text=text, object=asked, answer=answer))
    return tuple(questions)


# ---- The toy's tokenizer and processor.


SPLIT_WORDS: dict[str, tuple[str, str]] = {
    "lighthouse": ("light", "house"),
    "butterfly": ("butter", "fly"),
    "mushroom": ("mush", "room"),
    "bicycle": ("bi", "cycle"),
}
"""Objects of two pieces; the second piece carries no leading space."""

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN)

_PIECE_SCORE, _LETTER_SCORE = -1.0, -20.0


TOY_KNOWS = (
    "The toy knows drawn scenes of twenty objects; of a photograph its words mean "
    "nothing."
)
"""Said wherever an image that the toy world did not draw is put to a toy."""


def speaks_toy(tokenizer: Any) -> bool:
    """Tell whether a tokenizer's words are those of the toy world.

    Example:
        >>> import eah_interp as eah
        >>> speaks_toy(eah.load().tokenizer)
        True
    """
    return {piece for piece, _ in list_pieces()} == set(tokenizer.get_vocab())


def list_pieces() -> list[tuple[str, float]]:
    """List the vocabulary with unigram scores: special tokens, words, then letters."""
    texts = (*CAPTIONS, *CAPTION_PROMPTS, *QUESTIONS, "USER ASSISTANT Yes No and a")
    plain = re.sub(r"\{\w+\}", "", " ".join(texts))
    words = dict.fromkeys([*re.findall(r"[A-Za-z]+", plain), *COLOURS, *OBJECTS])
    pieces = dict.fromkeys(SPECIAL_TOKENS, 0.0)
    for word in words:
        first, *rest = SPLIT_WORDS.get(word, (word,))
        pieces[f"▁{first}"] = _PIECE_SCORE
        pieces.update(dict.fromkeys(rest, _PIECE_SCORE))
        if word[0].isupper():
            pieces[word] = _PIECE_SCORE
    pieces.update(dict.fromkeys("▁\n.,?:", _PIECE_SCORE))
    for code in range(33, 127):
        pieces.setdefault(chr(code), _LETTER_SCORE)
    return list(pieces.items())


@by_name
def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer: `<s>` first, left padding, text restored exactly.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.tokenize("a lighthouse, a boat")
        ['▁a', '▁light', 'house', ',', '▁a', '▁boat']
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = list_pieces()
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    start = [piece for piece, _ in pieces].index("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor(world: World) -> "LlavaProcessor":
    """Build the processor that turns images and prompts into model inputs.

    Args:
        world: Says how large images and patches are.

    Returns:
        A `LlavaProcessor` with a PIL image processor (no torchvision needed).
    """
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import (
        CLIPImageProcessorPil,
    )

    side = world.image_size
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=world.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
