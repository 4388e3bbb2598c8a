"""Settings of training: what is trained (`Recipe`), and how (`TrainingRun`)."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

from eah_interp.toy.model import Architecture
from eah_interp.toy.world import World

StageName: TypeAlias = Literal["vision", "language", "projection", "alignment"]

STAGES: tuple[StageName, ...] = ("vision", "language", "projection", "alignment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Length and pace of one stage.

    Attributes:
        steps: Optimizer steps.
        batch_size: Scenes (or texts) a step.
        learning_rate: Peak, after a short warm-up and before a cosine decay to a tenth.
    """

    steps: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, besides the versions of the libraries.

    Attributes:
        seed: Seeds the initial weights and every batch.
        world: Knobs of the scenes.
        architecture: Sizes of the model.
        vision: Stage 1.
        language: Stage 2.
        projection: Stage 3.
        alignment: Stage 4.
        text_prior: Share of the objects that an image spelled in words leaves out
            though its caption names them.
        blank_share: Share of word images that show nothing at all.
        caption_prior: Stage 4's captions name an unseen object this often, where the
            world's draw of a next object stays in the scene's group.
        word_picture: Number of words that spell an image in stage 2.
        turns: Most questions in one conversation about an image.
        text_turns: The same in stage 2, where images are short.
        projector_pace: Learning rate of the projector in stage 4, in multiples of
            the decoder's.
        end_weight: Weight of an answer's end token in the loss.
        yes_no_weight: Weight of "Yes" and "No" in the loss.
    """

    seed: int = 0
    world: World = dataclasses.field(default_factory=World)
    architecture: Architecture = dataclasses.field(default_factory=Architecture)
    vision: Stage = Stage(steps=2000, batch_size=32, learning_rate=2e-3)
    language: Stage = Stage(steps=500, batch_size=32, learning_rate=3e-3)
    projection: Stage = Stage(steps=120, batch_size=32, learning_rate=3e-3)
    alignment: Stage = Stage(steps=600, batch_size=24, learning_rate=1e-3)
    text_prior: float = 0.3
    blank_share: float = 0.1
    caption_prior: float = 0.35
    word_picture: int = 25
    turns: int = 5
    text_turns: int = 8
    projector_pace: float = 2.0
    end_weight: float = 0.3
    yes_no_weight: float = 3.0

    def stage(self, name: StageName) -> Stage:
        """Return the settings of a stage by its name."""
        stage: Stage = getattr(self, name)
        return stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """How to run a recipe; nothing here changes the weights in exact arithmetic.

    Attributes:
        out: Folder for the finished model and the checkpoint.
        device: Torch device, such as "cpu" or "cuda".
        threads: CPU threads; torch's own choice if None.
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        test_scenes: Scenes of the final evaluation on the test split.
        stop_after: Stop, resumable, after this many steps in all.
        command: Command line, for the log.
    """

    out: Path
    device: str = "cpu"
    threads: int | None = None
    save_every: int = 100
    log_every: int = 25
    test_scenes: int = 500
    stop_after: int | None = None
    command: str = ""
