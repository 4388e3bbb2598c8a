"""Who donated, and which image tokens their sinks are."""

import dataclasses
from typing import Any

from PIL import Image

from eah_interp.interventions import EAHPatch, SinkMap
from eah_interp.lvlm import LVLM, ImageSpan


def list_donors(patch: EAHPatch) -> list[dict[str, Any]]:
    """List the donor of each patched layer; None where nobody donated."""
    donors = []
    for layer in patch.layers:
        head = int(layer.donors[0])
        density = None if layer.density is None else float(layer.density[0, head])
        donors.append(
            {
                "layer": layer.layer,
                "head": head if head >= 0 else None,
                "name": f"L{layer.layer}H{head}" if head >= 0 else None,
                "density": density if head >= 0 else None,
                "patched": bool(layer.patched[0]),
            }
        )
    return donors


@dataclasses.dataclass(frozen=True)
class DonorSinks:
    """The vision sinks of one donor head.

    Attributes:
        layer: The patched layer.
        head: The donor.
        columns: Positions of its vision sinks.
        n_judged: How many image columns were judged.
        scores: Score of each position; None where those of the unpatched model stand
            in, which keeps none.
        is_share: Whether scores are multiples of the uniform share, and not the mean
            received attention itself.
    """

    layer: int
    head: int
    columns: tuple[int, ...]
    n_judged: int
    scores: tuple[float, ...] | None
    is_share: bool

    @property
    def title(self) -> str:
        """Name the donor and count its sinks."""
        count = f"{len(self.columns)} of {self.n_judged}"
        return f"sinks of donor L{self.layer}H{self.head}: {count}"


def list_donor_sinks(patch: EAHPatch, sink_map: SinkMap) -> list[DonorSinks]:
    """List the vision sinks of each donor head.

    Where the rule needed no scores, those of the unpatched model stand in, for the
    first patched layer, whose input no patch has changed.
    """
    found = []
    for number, layer in enumerate(patch.layers):
        head, scores = int(layer.donors[0]), None
        if head < 0:
            continue
        if layer.scores is not None:
            sinks = layer.scores.sinks(float(patch.eah.beta or 0))[0, head]
            judged = layer.scores.columns[0]
            of_head = min(head, layer.scores.unit.shape[1] - 1)  # one for all, or each
            unit = layer.scores.unit[0, of_head].clamp(min=1e-12)
            scores = tuple((layer.scores.scores[0, head] / unit).tolist())
        elif number == 0 and layer.layer in sink_map.layers:
            sinks = sink_map.sinks[0, sink_map.layers.index(layer.layer), head]
            judged = sink_map.columns[0]
        else:
            continue
        found.append(
            DonorSinks(
                layer=layer.layer,
                head=head,
                columns=tuple(sinks.nonzero().flatten().tolist()),
                n_judged=int(judged.sum()),
                scores=scores,
                is_share=patch.eah.definition == "visible",
            )
        )
    return found


def span_of(model: LVLM, image: Image.Image, prompt: str) -> ImageSpan:
    """Find the picture in a prompt, its size included, so that places are known."""
    return model.spans(model.encode(image, prompt))[0][0]
