"""The picture of the page of concepts: `python docs/toy/concepts.py`.

A toy scene with the donor's vision sinks, the donor's pattern, and another head's
before and after the broadcast. All of it is read from the model and its kernels.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

import eah_interp as eah
from eah_interp.kernels import broadcast_pattern
from eah_interp.toy import draw_scene

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

OUT = Path(__file__).parents[1] / "images" / "concepts.png"
LAYER, SCENE = 1, 0
QUESTION = "Is there a flower in the image?"
EDGE = "#D55E00"  # Okabe and Ito's vermilion


def read_pattern(model: Any, image: Any) -> torch.Tensor:
    """Read one layer's pattern off a plain forward pass, `[batch head query key]`."""
    with torch.no_grad():
        encoding = model.encode(image, QUESTION)
        result = model._module(**encoding, output_attentions=True)
    pattern: torch.Tensor = result.attentions[LAYER]
    return pattern


def draw_pattern(axis: Any, pattern: torch.Tensor, span: Any, title: str) -> None:
    """Draw one head's pattern, with the image columns bracketed."""
    axis.imshow(pattern, cmap="cividis", norm=PowerNorm(0.5, 0, 0.2), aspect="equal")
    axis.set_title(title, fontsize=8)
    axis.set_xticks([(span.start + span.stop) / 2], ["image columns"], fontsize=7)
    axis.set_yticks([])
    axis.tick_params(length=0)
    ends = [span.start - 0.5, span.stop - 0.5]
    axis.plot(ends, [pattern.shape[0] - 0.5] * 2, color=EDGE, lw=3, clip_on=False)


def draw(path: Path) -> dict[str, Any]:
    """Draw the picture; return what it shows.

    Returns:
        `donor`, `recipient` and `sinks`, the number of the donor's sinks.
    """
    model = eah.load(attn_implementation="eager")
    image = draw_scene(SCENE).pil()
    sinks = eah.score_sinks(model, image, QUESTION)
    donor = int(sinks.donors[0, LAYER])
    recipient = int(sinks.density[0, LAYER].argmin())
    (span,) = sinks.spans[0]
    columns = sinks.sinks[0, LAYER, donor].nonzero().flatten().tolist()
    before = read_pattern(model, image)
    after = broadcast_pattern(before, torch.tensor([donor]))

    figure, axes = plt.subplots(1, 4, figsize=(9, 2.7), layout="constrained")
    axes[0].imshow(image)
    axes[0].axis("off")
    axes[0].set_title(f"vision sinks of L{LAYER}H{donor}", fontsize=8)
    for column in columns:
        left, top, right, bottom = span.place(column)
        corner = (left * image.width - 0.5, top * image.height - 0.5)
        size = ((right - left) * image.width, (bottom - top) * image.height)
        axes[0].add_patch(Rectangle(corner, *size, fill=False, ec=EDGE, lw=1.5))
    own, other = f"pattern of L{LAYER}H{donor}", f"pattern of L{LAYER}H{recipient}"
    titles = (f"{own}, the donor", f"{other} before", f"{other} after")
    shown = (before[0, donor], before[0, recipient], after[0, recipient])
    for axis, pattern, title in zip(axes[1:], shown, titles, strict=True):
        draw_pattern(axis, pattern, span, title)
    axes[1].set_ylabel("query position", fontsize=7)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return {"donor": donor, "recipient": recipient, "sinks": len(columns)}


if __name__ == "__main__":
    print(draw(OUT))
