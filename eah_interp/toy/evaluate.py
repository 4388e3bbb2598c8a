"""How well the toy sees and how much it hallucinates, by exact ground truth."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.toy.language import (
    CAPTION_PROMPTS,
    SAMPLINGS,
    Question,
    objects_in,
    prompt_for,
    questions_for,
)
from eah_interp.toy.render import Scene
from eah_interp.toy.scenes import draw_scenes
from eah_interp.toy.world import Split, World

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measured on scenes the toy was not trained on; all numbers are percentages.

    Attributes:
        n_scenes: Scenes that were described and asked about.
        n_questions: Questions of each sampling, half of them about absent objects.
        accuracy: Share of right answers over all samplings.
        accuracy_by_sampling: The same for random, popular and adversarial questions.
        false_positives: Share of "Yes" to absent objects, for each sampling.
        recall: Share of the scenes' objects that the captions name.
        chair_s: Share of captions that name at least one absent object.
        chair_i: Share of named objects that are absent.
        caption_objects: Mean number of objects a caption names (not a percentage).
    """

    n_scenes: int
    n_questions: int
    accuracy: float
    accuracy_by_sampling: dict[str, float]
    false_positives: dict[str, float]
    recall: float
    chair_s: float
    chair_i: float
    caption_objects: float


@torch.no_grad()
def score_answers(
    model: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    *,
    scenes: Sequence[Scene],
    questions: Sequence[Question],
    batch_size: int = 64,
) -> Float[Tensor, " question"]:
    """Ask one question of each scene and return logit("Yes") - logit("No").

    Args:
        model: The toy or any model of its kind.
        processor: Its processor.
        scenes: One scene for each question.
        questions: What to ask.
        batch_size: Questions in one forward pass.

    Returns:
        Margins; above zero means the answer is "Yes".
    """
    yes, no = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    margins = []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = processor(
            images=[scene.pil() for scene in scenes[part]],
            text=[prompt_for(question.text) for question in questions[part]],
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        logits = model(**inputs, logits_to_keep=1).logits[:, -1].float()
        margins.append((logits[:, yes] - logits[:, no]).cpu())
    return torch.cat(margins)


@torch.no_grad()
def write_captions(
    model: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    *,
    scenes: Sequence[Scene],
    batch_size: int = 64,
    max_new_tokens: int = 40,
) -> list[str]:
    """Describe each scene, greedily."""
    captions: list[str] = []
    prompt = prompt_for(CAPTION_PROMPTS[0])
    for start in range(0, len(scenes), batch_size):
        part = scenes[start : start + batch_size]
        inputs = processor(
            images=[scene.pil() for scene in part],
            text=[prompt] * len(part),
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        fresh = ids[:, inputs["input_ids"].shape[1] :]
        captions += processor.batch_decode(fresh, skip_special_tokens=True)
    return captions


def evaluate(
    model: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    *,
    n_scenes: int = 500,
    pairs: int = 1,
    split: Split = "test",
    world: World | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Measure yes/no answers and captions on the first scenes of a split.

    CHAIR follows Rohrbach et al. (2018), with the drawn objects as ground truth.

    Args:
        model: The toy, or any model of its kind.
        processor: Its processor.
        n_scenes: Number of scenes.
        pairs: Yes/no pairs per scene and sampling.
        split: Where the scenes come from.
        world: Knobs of the scenes.
        batch_size: Scenes in one forward pass.

    Returns:
        The measurements.
    """
    scenes = draw_scenes(range(n_scenes), split=split, world=world)
    accuracy: dict[str, float] = {}
    false_positives: dict[str, float] = {}
    n_questions = 0
    for sampling in SAMPLINGS:
        asked = [
            (scene, question)
            for scene in scenes
            for question in questions_for(scene, sampling=sampling, pairs=pairs)
        ]
        margins = score_answers(
            model,
            processor,
            scenes=[scene for scene, _ in asked],
            questions=[question for _, question in asked],
            batch_size=batch_size,
        )
        truth = torch.tensor([question.answer for _, question in asked])
        says_yes = margins > 0
        n_questions = len(asked)
        accuracy[sampling] = _percent(says_yes == truth)
        false_positives[sampling] = _percent(says_yes[~truth])
    captions = write_captions(model, processor, scenes=scenes, batch_size=batch_size)
    named = [set(objects_in(caption)) for caption in captions]
    true = [set(scene.objects) for scene in scenes]
    wrong = [says - there for says, there in zip(named, true, strict=True)]
    n_named = sum(map(len, named))
    n_found = n_named - sum(map(len, wrong))
    return Evaluation(
        n_scenes=n_scenes,
        n_questions=n_questions,
        accuracy=round(sum(accuracy.values()) / len(accuracy), 2),
        accuracy_by_sampling=accuracy,
        false_positives=false_positives,
        recall=round(100 * n_found / sum(map(len, true)), 2),
        chair_s=_percent(torch.tensor([bool(names) for names in wrong])),
        chair_i=round(100 * sum(map(len, wrong)) / max(n_named, 1), 2),
        caption_objects=round(n_named / n_scenes, 3),
    )


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.float().mean()), 2)
