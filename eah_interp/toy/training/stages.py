"""The training stages of the toy: sight, language, projection, alignment.

1. *vision*: the vision tower alone labels its patches; frozen afterwards.
2. *language*: the decoder alone learns captions and yes/no questions of images that
   are spelled in words. Objects are left out of some images but not out of their
   captions: the decoder learns from text which objects go together, and to name them
   unseen. This is the prior that the toy hallucinates from.
3. *projection*: the projector alone learns to turn a patch into its object's word.
4. *alignment*: projector and decoder learn from images, captions and questions. Some
   captions name what usually comes along, unseen.

*projection* stands for LLaVA's first training phase, the others for what precedes and
follows it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eah_interp.toy.language import (
    CAPTION_PROMPTS,
    CAPTIONS,
    IMAGE_TOKEN,
    QUESTIONS,
    SPLIT_WORDS,
    answer_word,
    ask_for,
    build_tokenizer,
    caption_of,
    list_pieces,
)
from eah_interp.toy.render import Scene
from eah_interp.toy.scenes import draw_scenes
from eah_interp.toy.training.recipe import STAGES, Recipe, StageName
from eah_interp.toy.world import OBJECTS, draw_companion, draw_objects

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

# ---- Training batches: images as tensors, conversations as ids with a loss mask.


PIECE_IDS: dict[str, int] = {p: i for i, (p, _) in enumerate(list_pieces())}

OBJECT_IDS: tuple[int, ...] = tuple(
    PIECE_IDS["▁" + SPLIT_WORDS.get(name, (name,))[0]] for name in OBJECTS
)
"""Id of the first (or only) piece of each object, in the order of `OBJECTS`."""

BLANK_ID = PIECE_IDS["."]
"""What stands for a patch without an object where an image is spelled in words."""

IGNORED = -100

_SLOT = 4
"""Place of the image token in every conversation: `<s> USER : _ <image>`."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Conversations, padded on the right, and the tokens that the loss is taken on.

    Attributes:
        input_ids: Token ids.
        labels: `input_ids` where the model is to answer, -100 elsewhere.
    """

    input_ids: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]


def pixels_of(scenes: Sequence[Scene]) -> Float[Tensor, "batch 3 height width"]:
    """Stack images as the processor would: channels first, from -1 to 1."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def labels_of(scenes: Sequence[Scene]) -> Int[Tensor, "batch patch"]:
    """Stack patch labels, row by row, as image tokens are ordered."""
    return torch.from_numpy(np.stack([scene.labels.reshape(-1) for scene in scenes]))


def converse_caption(objects: Sequence[str], *, rng: np.random.Generator) -> str:
    """Write a conversation that describes an image, objects in random order."""
    prompt = CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
    template = CAPTIONS[rng.integers(len(CAPTIONS))]
    caption = caption_of(
        [objects[i] for i in rng.permutation(len(objects))], template=template
    )
    return f"USER: {IMAGE_TOKEN}\n{prompt} ASSISTANT: {caption}</s>"


def converse_questions(
    objects: Sequence[str], *, rng: np.random.Generator, turns: int = 6
) -> str:
    """Write a conversation of yes/no questions, no object asked for twice.

    Each turn is a fair coin between an object that is there and one that is not; the
    conversation ends early when the coin asks for a present object and none is left,
    so earlier answers say little about later ones.
    """
    present = [objects[i] for i in rng.permutation(len(objects))]
    absent = [name for name in OBJECTS if name not in objects]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    parts: list[str] = []
    for turn in range(turns):
        answer = bool(rng.random() < 0.5)
        if answer and not present:
            if parts:
                break
            answer = False
        name = (present if answer else absent).pop()
        common = rng.random() < 0.5
        template = QUESTIONS[0 if common else rng.integers(len(QUESTIONS))]
        question = ask_for(name, template=template)
        opening = f"USER: {IMAGE_TOKEN}\n" if turn == 0 else "USER: "
        parts.append(f"{opening}{question} ASSISTANT: {answer_word(answer)}</s>")
    return "".join(parts)


def encode(
    conversations: Sequence[str], *, images: Int[np.ndarray, "batch image_tokens"]
) -> Batch:
    """Turn conversations into ids, the image token replaced by the image's ids.

    Args:
        conversations: Texts that start with `USER: <image>`.
        images: Ids that stand for each image: image tokens, or words for patches.

    Returns:
        The batch, with labels on the answers and their end tokens only.
    """
    backend = _backend()
    rows = [
        np.array(e.ids)
        for e in backend.encode_batch_fast(list(conversations))  # type: ignore[attr-defined]
    ]
    n_image = images.shape[1]
    longest = max(len(row) for row in rows) + n_image - 1
    input_ids = np.full((len(rows), longest), PIECE_IDS["<pad>"], dtype=np.int64)
    for row, (ids, image) in enumerate(zip(rows, images, strict=True)):
        full = np.concatenate([ids[:_SLOT], image, ids[_SLOT + 1 :]])
        input_ids[row, : len(full)] = full
    # +1 where an answer begins, after "ASSISTANT:", and -1 behind its end token: the
    # running sum is 1 inside answers
    answers = np.zeros_like(input_ids)
    speaks = input_ids[:, 1:] == PIECE_IDS[":"]
    speaks &= input_ids[:, :-1] == PIECE_IDS["▁ASSISTANT"]
    answers[:, 2:] += speaks[:, :-1]
    answers[:, 1:] -= input_ids[:, :-1] == PIECE_IDS["</s>"]
    inside = answers.cumsum(axis=1) > 0
    labels = np.where(inside, input_ids, IGNORED)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels))


def spell_image(
    objects: Sequence[str], *, rng: np.random.Generator, length: int
) -> Int[np.ndarray, " length"]:
    """Spell an image in words: each object in up to four places, the others blank.

    Example:
        >>> ids = spell_image(["cup"], rng=np.random.default_rng(0), length=9)
        >>> set(ids.tolist()) == {BLANK_ID, OBJECT_IDS[8]}
        True
    """
    ids = np.full(length, BLANK_ID, dtype=np.int64)
    places = rng.permutation(length)
    taken = 0
    for name in objects:
        count = min(int(rng.integers(1, 5)), max(1, length // len(objects)))
        ids[places[taken : taken + count]] = OBJECT_IDS[OBJECTS.index(name)]
        taken += count
    return ids


@functools.cache
def _backend() -> object:
    return build_tokenizer().backend_tokenizer


# ---- The conversations of one training step.


Ids: TypeAlias = Int[np.ndarray, " image_tokens"]


class Talks:
    """Conversations of one step: captions and questions apart, to pad them less.

    Attributes:
        captions: Conversations that describe.
        questions: Conversations that ask.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.captions: list[str] = []
        self.questions: list[str] = []
        self._images: tuple[list[Ids], list[Ids]] = ([], [])
        self._scenes: tuple[list[Scene], list[Scene]] = ([], [])

    def add(
        self, text: str, image: Ids, *, asks: bool, scene: Scene | None = None
    ) -> None:
        """Add a conversation about an image, spelled as ids, and its scene if any."""
        (self.questions if asks else self.captions).append(text)
        self._images[asks].append(image)
        if scene is not None:
            self._scenes[asks].append(scene)

    def batches(self) -> Iterator[tuple[Batch, Tensor | None]]:
        """Give one batch of each kind, with its pixels if it has scenes."""
        for texts, images, scenes in zip(
            (self.captions, self.questions), self._images, self._scenes, strict=True
        ):
            if texts:
                pixels = pixels_of(scenes) if scenes else None
                yield encode(texts, images=np.stack(images)), pixels


_FAITHFUL_SHARE = 0.7
"""Share of stage 2 before objects are left out of its images."""

YES_NO_IDS = (PIECE_IDS["▁Yes"], PIECE_IDS["▁No"])


@dataclasses.dataclass(frozen=True)
class Step:
    """What one training step computed: the loss, and metrics to be averaged."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float]


class Trainee(nn.Module):
    """The toy with the patch classifier that only stage 1 needs."""

    def __init__(
        self, model: "LlavaForConditionalGeneration", *, recipe: Recipe
    ) -> None:
        """Wrap a fresh model."""
        super().__init__()
        self.model = model
        self.patch_head = nn.Linear(recipe.architecture.vision_width, len(OBJECTS) + 1)

    def groups(self, name: StageName, *, recipe: Recipe) -> list[dict[str, Any]]:
        """Freeze what the stage leaves alone; return the rest in optimizer groups."""
        inner = self.model.model
        projector = list(inner.multi_modal_projector.parameters())
        decoder = list(inner.language_model.parameters())
        sight = [*inner.vision_tower.parameters(), *self.patch_head.parameters()]
        trained: dict[StageName, list[tuple[Iterable[nn.Parameter], float]]] = {
            "vision": [(sight, 1.0)],
            "language": [(decoder, 1.0)],
            "projection": [(projector, 1.0)],
            "alignment": [(decoder, 1.0), (projector, recipe.projector_pace)],
        }
        self.requires_grad_(requires_grad=False)
        self.zero_grad()  # an earlier stage's gradients would count in the clipping
        groups: list[dict[str, Any]] = []
        for parameters, pace in trained[name]:
            chosen = list(parameters)
            for parameter in chosen:
                parameter.requires_grad = True
            groups.append({"params": chosen, "pace": pace})
        return groups


def run_step(trainee: Trainee, *, name: StageName, recipe: Recipe, step: int) -> Step:
    """Draw the batch of one step and compute its loss.

    The batch depends on recipe, stage and step only, so a resumed run continues as if
    it had never stopped.
    """
    rng = np.random.default_rng((recipe.seed, STAGES.index(name), step))
    size = recipe.stage(name).batch_size
    if name == "language":
        progress = step / recipe.language.steps
        return _language_step(trainee, rng=rng, recipe=recipe, progress=progress)
    offset = int(rng.integers(0, 2**40))
    scenes = draw_scenes(
        range(offset, offset + size), split="train", world=recipe.world
    )
    if name == "vision":
        return _vision_step(trainee, scenes=scenes)
    if name == "projection":
        return _projection_step(trainee, scenes=scenes)
    talks = talk_about(scenes, rng=rng, recipe=recipe)
    return _answer_step(trainee, talks=talks, recipe=recipe)


def _vision_step(trainee: Trainee, *, scenes: list[Scene]) -> Step:
    device = trainee.patch_head.weight.device
    tower = trainee.model.model.vision_tower
    features = tower(pixels_of(scenes).to(device)).last_hidden_state[:, 1:]
    logits = trainee.patch_head(features).flatten(0, 1)
    labels = labels_of(scenes).to(device).flatten()
    weight = torch.ones(len(OBJECTS) + 1, device=device)
    weight[0] = 0.3  # most patches are background
    hits = (logits.argmax(-1) == labels).float()
    shown = labels > 0
    return Step(
        functional.cross_entropy(logits, labels, weight=weight),
        {
            "patch_accuracy": float(hits.mean()),
            "object_patch_accuracy": float(hits[shown].mean()),
        },
    )


def _projection_step(trainee: Trainee, *, scenes: list[Scene]) -> Step:
    device = trainee.patch_head.weight.device
    inner = trainee.model.model
    features = inner.vision_tower(pixels_of(scenes).to(device)).last_hidden_state
    projected = inner.multi_modal_projector(features[:, 1:])
    words = inner.get_input_embeddings().weight  # frozen in this stage
    ids = torch.tensor([BLANK_ID, *OBJECT_IDS], device=device)
    target = words[ids][labels_of(scenes).to(device)]
    nearest = torch.cdist(projected.flatten(0, 1), words[ids]).argmin(-1)
    labels = labels_of(scenes).to(device).flatten()
    shown = labels > 0
    return Step(
        functional.mse_loss(projected, target) / words.detach().var(),
        {"object_patch_accuracy": float((nearest == labels)[shown].float().mean())},
    )


def _language_step(
    trainee: Trainee, *, rng: np.random.Generator, recipe: Recipe, progress: float
) -> Step:
    """Read short complete images at first; long ones with gaps towards the end."""
    length = round(4 + (recipe.word_picture - 4) * min(1.0, progress / 0.6))
    faithful = progress < _FAITHFUL_SHARE
    talks = Talks()
    for index in range(recipe.language.batch_size):
        objects = draw_objects(rng, prior=recipe.world.prior)
        shown: tuple[str, ...] = objects
        if index % 4:
            text = converse_questions(objects, rng=rng, turns=recipe.text_turns)
        else:
            text = converse_caption(objects, rng=rng)
            kept = rng.random(len(objects)) >= recipe.text_prior
            kept |= faithful
            blank = not faithful and rng.random() < recipe.blank_share
            shown = tuple(
                name for name, keep in zip(objects, kept, strict=True) if keep
            )
            shown = () if blank else shown
        image = spell_image(shown, rng=rng, length=length)
        talks.add(text, image, asks=bool(index % 4))
    return _answer_step(trainee, talks=talks, recipe=recipe)


def talk_about(
    scenes: list[Scene], *, rng: np.random.Generator, recipe: Recipe
) -> Talks:
    """Describe every other scene, and ask about the rest.

    Some captions name one thing more than is there, if it is of the scene's own group:
    so do captions of the wild, and those that language models write for LVLMs.
    """
    tokens = np.full(recipe.world.grid**2, PIECE_IDS["<image>"])
    talks = Talks()
    for index, scene in enumerate(scenes):
        if index % 2:
            text = converse_questions(scene.objects, rng=rng, turns=recipe.turns)
        else:
            named = list(scene.objects)
            if rng.random() < recipe.caption_prior:
                extra = draw_companion(rng, objects=named, prior=recipe.world.prior)
                named += [extra] if extra else []
            text = converse_caption(named, rng=rng)
        talks.add(text, tokens, asks=bool(index % 2), scene=scene)
    return talks


def _answer_step(trainee: Trainee, *, talks: Talks, recipe: Recipe) -> Step:
    """Compute the loss on answers only, and how often yes/no and objects are right."""
    device = trainee.patch_head.weight.device
    said: list[Tensor] = []
    wanted: list[Tensor] = []
    for batch, pixels in talks.batches():
        outputs = trainee.model.model(
            input_ids=batch.input_ids.to(device),
            pixel_values=None if pixels is None else pixels.to(device),
            use_cache=False,
        )
        answers = (batch.labels[:, 1:] != IGNORED).to(device)
        said.append(outputs.last_hidden_state[:, :-1][answers])
        wanted.append(batch.labels[:, 1:].to(device)[answers])
    logits, targets = trainee.model.lm_head(torch.cat(said)), torch.cat(wanted)
    weight = torch.ones(logits.shape[-1], device=device)
    weight[PIECE_IDS["</s>"]] = recipe.end_weight
    weight[list(YES_NO_IDS)] = recipe.yes_no_weight
    hits = (logits.argmax(-1) == targets).float()
    yes_no = torch.isin(targets, torch.tensor(YES_NO_IDS, device=device))
    named = torch.isin(targets, torch.tensor(OBJECT_IDS, device=device))
    return Step(
        functional.cross_entropy(logits, targets, weight=weight),
        {
            "yes_no_accuracy": float(hits[yes_no].mean()),
            "object_token_accuracy": float(hits[named].mean()),
        },
    )
