"""Heads that make a model follow a false prompt: prompt-induced hallucination."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from eah_interp.arguments import by_name
from eah_interp.attribution.patching import AblationMode, ablate_heads
from eah_interp.errors import InputError, show_value
from eah_interp.finders.scores import HeadScores
from eah_interp.indices import to_list
from eah_interp.interventions.directions import encode_plain
from eah_interp.interventions.intervention import list_layers
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.fingerprint import hash_weights


@by_name
def find_prompt_heads(
    model: Any,
    images: object,
    prompts: object,
    *,
    told: Sequence[str],
    true: Sequence[str],
    how: AblationMode = "mean",
    layers: Iterable[int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> HeadScores:
    """Find the heads that make a model say what a false prompt says.

    Of each item the margin is the logit of the word that the prompt `told` minus that
    of the `true` one, after the prompt. A head's score is by how much it falls when the
    head alone is ablated; `frame()` has the share of items that are `cured` by it: the
    prompt was followed, and is not any more. Source: Rudman et al., arXiv:2601.05201,
    who count the cured among greedy answers; a margin tells more of few items. The mean
    of an ablation is over the item's own prompt, as in their release for one item.

    One ablation a head and item, from the head's layer on, `batch_size` of them in a
    forward pass. The null exchanges which word was told, item by item.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: Prompts that say something false of their image.
        told: The false word, one for each item: `["four", "boat"]`.
        true: What the image shows instead, one for each item.
        how: What an ablated head returns: `"mean"` or `"zero"`.
        layers: Decoder layers whose heads are ablated; all that have heads when None.
        batch_size: Most ablations in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Scores by item and head; `before` has the margins.

    Raises:
        InputError: If images, prompts or words do not fit.
        SettingsError: If a word cannot be spelled, a layer does not exist, or the batch
            size is below 1.
        ModelError: If a named layer has no heads.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = find_prompt_heads(
        ...     eah.load(),
        ...     [random_image(0), random_image(1)],
        ...     "Is there a boat in the image?",
        ...     told=["boat", "boat"],
        ...     true=["fish", "fish"],
        ...     layers=(0,),
        ... )
        >>> found.before.shape, found.labels
        (torch.Size([2]), 'signs')
    """
    encoding = encode_plain(model, images, prompts)
    chosen = list_layers(sorted(model.anatomy.sites) if layers is None else layers)
    n_items = len(encoding["input_ids"])
    pairs = _pair_words(told, true, n_items=n_items)
    done = ablate_heads(
        model,
        encoding,
        how=how,
        heads=[(layer, head) for layer in chosen for head in range(model.n_heads)],
        objects=pairs,
        metric="logit_diff",
        batch_size=batch_size,
        progress=progress,
    )
    grids = torch.stack([done.grid(target) for target in range(n_items)])
    return HeadScores(
        finder="prompt",
        measure=f"fall of the told word's margin, {how} ablation",
        scores=-grids.float(),
        layers=tuple(chosen),
        items=torch.arange(n_items),
        labels="signs",
        before=done.values.float().cpu(),
        weights=hash_weights(model),
        model=name_model(model),
    )


def _pair_words(told: object, true: object, *, n_items: int) -> list[list[str]]:
    """Pair the words of each item.

    Raises:
        InputError: If there are not two different ones for each.
    """
    listed = [to_list(words) for words in (told, true)]
    for name, words in zip(("told", "true"), listed, strict=True):
        fit = words is not None and all(isinstance(word, str) for word in words)
        if not fit or words is None or len(words) != n_items:
            got = show_value(told if name == "told" else true)
            msg = f"{name} must be a word for each of {n_items} items, got {got}"
            raise InputError(msg)
    pairs = [list(pair) for pair in zip(*map(list, listed), strict=True)]  # type: ignore[arg-type]
    same = [item for item, (one, other) in enumerate(pairs) if one == other]
    if same:
        msg = (
            f"item {same[0]} was told {pairs[same[0]][0]!r}, which is true of it: "
            "expected a false prompt; leave the item out"
        )
        raise InputError(msg)
    return pairs
