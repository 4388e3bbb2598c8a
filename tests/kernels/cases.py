"""Attention problems that the kernel tests share: layouts, queries and keys."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.oracle import causal, oracle_pattern

DEFINITIONS = ("paper", "official", "visible")


@dataclass(frozen=True)
class Case:
    """Queries, keys and masks of one attention call, and the pattern they give."""

    queries: Tensor
    keys: Tensor
    image_mask: Tensor
    token_mask: Tensor
    visible: Tensor
    softcap: float | None = None

    @property
    def pattern(self) -> Tensor:
        """The float64 oracle's pattern, in float32."""
        scale = self.queries.shape[-1] ** -0.5
        weights = oracle_pattern(
            self.queries, self.keys, self.visible, scale, self.softcap
        )
        return weights.float()

    @property
    def masks(self) -> dict[str, Tensor]:
        """What `score_columns` is told."""
        return {
            "image_mask": self.image_mask,
            "token_mask": self.token_mask,
            "visible": self.visible,
        }


def masks_of(*layouts: str) -> tuple[Tensor, Tensor]:
    """Return the image and token masks of layouts such as "tiiti" (text, image).

    Shorter layouts are padded on the left.
    """
    length = max(map(len, layouts))
    rows = [list(layout.rjust(length, ".")) for layout in layouts]
    image = torch.tensor([[kind == "i" for kind in row] for row in rows])
    real = torch.tensor([[kind != "." for kind in row] for row in rows])
    return image, real


def bidirectional(image_mask: Tensor, token_mask: Tensor) -> Tensor:
    """Let image tokens see every image token of their item, as PaliGemma's do."""
    both = image_mask[:, :, None] & image_mask[:, None, :]
    return causal(token_mask) | both[:, None]


def sliding(token_mask: Tensor, window: int) -> Tensor:
    """Let every row see itself and the `window - 1` tokens before it."""
    length = token_mask.shape[1]
    position = torch.arange(length)
    near = position[:, None] - position[None, :] < window
    return causal(token_mask) & near


def make_case(
    *layouts, n_heads=4, n_kv_heads=4, d_head=8, seed=0, sees="causal", softcap=None
) -> Case:
    """Draw a case; the logits have a spread of about 2, so that heads differ."""
    image_mask, token_mask = masks_of(*layouts)
    batch, length = image_mask.shape
    generator = torch.Generator().manual_seed(seed)
    queries = 2 * torch.randn(batch, n_heads, length, d_head, generator=generator)
    keys = torch.randn(batch, n_kv_heads, length, d_head, generator=generator)
    visible = {
        "causal": lambda: causal(token_mask),
        "bidirectional": lambda: bidirectional(image_mask, token_mask),
        "sliding": lambda: sliding(token_mask, 4),
    }[sees]()
    return Case(queries, keys, image_mask, token_mask, visible, softcap)


LAYOUTS = {
    "one image": ["tttiiiiiittt"],
    "left padding": ["ttiiiiiitttt", "tiiiiitt", "iiiit"],
    "several images": ["tiiittiiiitt", "tiitiitiitt"],
    "image at both ends": ["iiiiittiii", "iiiiiiiiii"],
    "one image token after text": ["ttttittt", "tttiitt"],
}


@st.composite
def cases(draw) -> Case:
    """Draw layouts, head counts, visibility and soft-capping together."""
    layout = st.text("ti", min_size=2, max_size=10).filter(lambda s: s.count("i") > 1)
    layouts = draw(st.lists(layout, min_size=1, max_size=3))
    n_kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)]))
    return make_case(
        *layouts,
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        seed=draw(st.integers(0, 99)),
        sees=draw(st.sampled_from(["causal", "bidirectional", "sliding"])),
        softcap=draw(st.sampled_from([None, 3.0])),
    )


def tokens_moved(case: Case, n_padding: int) -> Case:
    """Return the same case with more padding on the left."""
    wider = (n_padding, 0)
    return Case(
        torch.nn.functional.pad(case.queries, (0, 0, *wider)),
        torch.nn.functional.pad(case.keys, (0, 0, *wider)),
        torch.nn.functional.pad(case.image_mask, wider),
        torch.nn.functional.pad(case.token_mask, wider),
        torch.nn.functional.pad(case.visible, (*wider, *wider)),
        case.softcap,
    )
