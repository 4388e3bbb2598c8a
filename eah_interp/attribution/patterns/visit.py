"""Attention calls of a run, plain or patched, with the pattern that is really used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.attribution.cases.case import Case
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.donation import apply_patch, donate_pattern, plan_patch
from eah_interp.interventions.patches import LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.kernels import (
    ColumnScores,
    PatternBlock,
    pattern_blocks,
    stream_column_scores,
)
from eah_interp.lvlm.anatomy import attention_operation, walk_sites
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.worker import Prompt, prompt_of_worker


@dataclass(frozen=True)
class Visit:
    """One layer's attention call in one run.

    Attributes:
        layer: The decoder layer.
        call: The call as the model made it, before the layer's own patch.
        prompt: Its tokens.
        eah: The settings of the run; None for a plain one.
        patch: Who donates in this layer; None where nobody does.
    """

    layer: int
    call: AttentionCall
    prompt: Prompt
    eah: EAH | None
    patch: LayerPatch | None

    def rows(self, positions: Sequence[int], heads: Sequence[int]) -> Tensor:
        """Compute some rows of some heads, as the run attends with them.

        Rows are computed a block at a time, and only the heads that were asked for are
        kept; where a layer is patched a block has all heads, since any may donate.

        Args:
            positions: Query positions.
            heads: Query heads.

        Returns:
            The rows, `[batch head row key]`, float32 on the CPU.
        """
        parts = self._take_rows(torch.tensor(positions))
        kept = list(heads)
        if self.patch is None:
            parts, kept = _take_heads(parts, kept), list(range(len(kept)))
        own = torch.tensor(positions, device=self.call.queries.device)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        blocks = [
            self.change(block, own[block.rows])[:, kept].float().cpu()
            for block in pattern_blocks(queries, keys, **parts)
        ]
        return torch.cat(blocks, 2)

    def score(self, settings: EAH) -> ColumnScores:
        """Score every image column under the patterns that the run attends with.

        Args:
            settings: Say which definition.
        """
        parts = self.call.pattern_inputs(self.prompt.scored_mask)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        place = torch.arange(queries.shape[2], device=queries.device)
        return stream_column_scores(
            queries,
            keys,
            image_mask=self.prompt.image_mask[:, : keys.shape[2]],
            definition=settings.definition,
            change=lambda block: self.change(block, place[block.rows]),
            **parts,
        )

    def change(self, block: PatternBlock, own: Tensor) -> Tensor:
        """Give a block of rows the weights that the run attends with.

        Args:
            block: Rows of every head, as the model computed them.
            own: Position of each row.
        """
        if self.eah is None or self.patch is None:
            return block.weights
        images = self.prompt.image_mask[:, : block.weights.shape[-1]]
        new = donate_pattern(self.eah, block, self.patch, image_mask=images)
        inside = self.prompt.prompt_mask
        if self.eah.steps == "all" or inside is None:
            return new
        return torch.where(inside[:, None, own, None], new, block.weights)

    def _take_rows(self, positions: Tensor) -> dict[str, Any]:
        """Take query rows out of what the pattern is computed from."""
        parts = self.call.pattern_inputs(self.prompt.token_mask)
        positions = positions.to(self.call.queries.device)
        keys, mask, tokens = parts["keys"], parts["mask"], parts.pop("token_mask")
        if mask is None:
            place = torch.arange(keys.shape[2], device=keys.device)
            mask = (place <= positions[:, None])[None, None]
            if tokens is not None:
                mask = mask & tokens[:, None, None]
        else:
            mask = mask[:, :, positions]
        sink = parts["sink_logits"]
        if sink is not None and sink.shape[2] > 1:
            parts["sink_logits"] = sink[:, :, positions]
        return parts | {"queries": parts["queries"][:, :, positions], "mask": mask}


def visit_layers(
    model: Any,
    encoding: Mapping[str, Any],
    look: Callable[[Visit], None],
    *,
    layers: Sequence[int],
    eah: EAH | None = None,
    prompt_mask: ColumnMask | None = None,
) -> dict[int, Tensor]:
    """Run a model, plain or patched, and look at the attention calls of some layers.

    Args:
        model: An LVLM that no edit has patched.
        encoding: Its inputs.
        look: Called at each of the layers, in the order of the forward pass.
        layers: Which decoder layers. What comes after the last of them is not run.
        eah: Settings of a patched run.
        prompt_mask: True at the prompt's tokens, where an answer follows.

    Returns:
        Donor head of each patched layer, by batch item, on the CPU.

    Raises:
        UnsupportedError: If the model is a patched twin.
    """
    check_unedited(model)
    donors: dict[int, Tensor] = {}
    inputs = {k: v for k, v in encoding.items() if k != "labels"}
    with torch.no_grad(), model.trace(**inputs, use_cache=False) as tracer:
        whole = prompt_of_worker(model).limit(prompt_mask)
        for site in _until(max(layers), model):
            patched = eah is not None and site.layer in eah.layers
            if not patched and site.layer not in layers:
                continue
            operation = attention_operation(model, site)
            call = AttentionCall.parse(operation.inputs)
            prompt = whole.fit(call)
            patch = None
            if eah is not None and patched:
                patch = plan_patch(eah, call, prompt, layer=site.layer)
                donors[site.layer] = patch.donors.cpu()
            if site.layer in layers:
                look(Visit(site.layer, call, prompt, eah, patch))
            if eah is not None and patch is not None:
                apply_patch(eah, operation, call, prompt, patch)
        tracer.stop()
    return donors


def open_question(
    model: Any, images: object, prompts: object
) -> tuple[Encoding, ColumnMask | None]:
    """Encode what is asked; of a case, its inputs and which of its tokens are prompt.

    Raises:
        InputError: If images or prompts do not fit.
    """
    if isinstance(images, Case):
        return images.encoding, images.prompt_mask
    if isinstance(images, Encoding):
        return images, None
    if isinstance(images, Mapping):
        return Encoding(images), None
    return model.encode(images, prompts), None


def check_unedited(model: Any) -> None:
    """Refuse a patched twin: its own patch would be read in part only.

    Raises:
        UnsupportedError: If the model was patched by `edit`.
    """
    if getattr(model, "_edits", None):
        msg = (
            "the model is a patched twin, as `edit` returns it: expected the model "
            "itself, with the settings as patch=eah.EAH(...)"
        )
        raise UnsupportedError(msg)


def _until(last: int, model: Any) -> Iterator[Any]:
    for site in walk_sites(model.anatomy):
        if site.layer <= last:
            yield site


def _take_heads(parts: dict[str, Any], heads: list[int]) -> dict[str, Any]:
    """Take query heads out of what the pattern is computed from, keys with them."""
    queries, keys = parts["queries"], parts["keys"]
    groups = queries.shape[1] // keys.shape[1]
    taken = parts | {
        "queries": queries[:, heads],
        "keys": keys[:, [head // groups for head in heads]],
    }
    for name in ("mask", "sink_logits"):
        if parts[name] is not None and parts[name].shape[1] > 1:
            taken[name] = parts[name][:, heads]
    return taken
