"""The training stages of the toy: sight, language, projection, alignment.

1. *vision*: the vision tower alone labels its patches; frozen afterwards.
2. *language*: the decoder alone learns captions and yes/no questions of pictures that
   are spelled in words. Objects are left out of some pictures but not out of their
   captions: the decoder learns from text which objects go together, and to name them
   unseen. This is the prior that the toy hallucinates from.
3. *projection*: the projector alone learns to turn a patch into its object's word.
4. *alignment*: projector and decoder learn from pictures, captions and questions. Some
   captions name what usually comes along, unseen.

*projection* stands for LLaVA's first training phase, the others for what precedes and
follows it.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eah_interp.toy.batches import (
    BLANK_ID,
    IGNORED,
    OBJECT_IDS,
    PIECE_IDS,
    converse_caption,
    converse_questions,
    labels_of,
    pixels_of,
    spell_picture,
)
from eah_interp.toy.recipe import STAGES, Recipe, StageName
from eah_interp.toy.render import Scene
from eah_interp.toy.scenes import draw_scenes
from eah_interp.toy.talks import Talks
from eah_interp.toy.world import OBJECTS, draw_companion, draw_objects

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

_FAITHFUL_SHARE = 0.7
"""Share of stage 2 before objects are left out of its pictures."""

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
    weight[0] = 0.3
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
    words = inner.get_input_embeddings().weight
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
    """Read short complete pictures at first; long ones with gaps towards the end."""
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
        picture = spell_picture(shown, rng=rng, length=length)
        talks.add(text, picture, asks=bool(index % 4))
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
