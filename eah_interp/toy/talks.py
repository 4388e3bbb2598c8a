"""The conversations of one training step."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Int
from torch import Tensor

from eah_interp.toy.batches import Batch, encode, pixels_of
from eah_interp.toy.render import Scene

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
        self._pictures: tuple[list[Ids], list[Ids]] = ([], [])
        self._scenes: tuple[list[Scene], list[Scene]] = ([], [])

    def add(
        self, text: str, picture: Ids, *, asks: bool, scene: Scene | None = None
    ) -> None:
        """Add a conversation about a picture, spelled as ids, and its scene if any."""
        (self.questions if asks else self.captions).append(text)
        self._pictures[asks].append(picture)
        if scene is not None:
            self._scenes[asks].append(scene)

    def batches(self) -> Iterator[tuple[Batch, Tensor | None]]:
        """Give one batch of each kind, with its pixels if it has scenes."""
        for texts, pictures, scenes in zip(
            (self.captions, self.questions), self._pictures, self._scenes, strict=True
        ):
            if texts:
                pixels = pixels_of(scenes) if scenes else None
                yield encode(texts, images=np.stack(pictures)), pixels
