"""Heads that speak for objects that are not there, by ablating each."""

from collections.abc import Iterable
from typing import Any

import torch

from eah_interp.arguments import by_name
from eah_interp.attribution.cases import Caption, Objects, Truth
from eah_interp.attribution.patching import AblationMode, ablate_heads
from eah_interp.errors import InputError
from eah_interp.finders.scores import HeadScores
from eah_interp.interventions.directions import encode_plain
from eah_interp.interventions.intervention import list_layers
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.fingerprint import hash_weights


@by_name
def find_hallucination_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Objects,
    truth: Truth,
    caption: Caption | None = None,
    how: AblationMode = "zero",
    layers: Iterable[int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> HeadScores:
    """Find the heads that raise absent objects more than present ones.

    Every head is ablated alone, and the log probability of every object read, at the
    answer's first word or wherever a caption names it. A line's score is by how much it
    falls; a head's, the mean over absent objects minus that over present ones. Source:
    the attribution of AD-HH (Yang et al., ICLR 2025), which runs the model 1,024 times
    for each token of a caption (32 layers of 32 heads). Here the ablations of an item
    are rows of a batch, begin at the layer of their heads, and all objects of the item
    are read off each: 1,024 rows an item, that is 1,024 / `batch_size` forward passes
    of half the layers on average, whatever the number of objects.

    The null exchanges, among an item's objects, which of them are absent.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: Words for every item, or a list for each.
        truth: What is in the images, a list for each item.
        caption: An answer for each item; objects are read wherever it names them.
        how: What an ablated head returns: `"zero"` or `"mean"`.
        layers: Decoder layers whose heads are ablated; all that have heads when None.
        batch_size: Most ablations in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Scores by object and head; `group` is True at absent objects.

    Raises:
        InputError: If images, prompts or objects do not fit, or all objects, or none,
            are present.
        SettingsError: If a word cannot be spelled, a layer does not exist, or the batch
            size is below 1.
        ModelError: If a named layer has no heads.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = find_hallucination_heads(
        ...     eah.load(),
        ...     [random_image(0), random_image(1)],
        ...     objects=["boat", "fish"],
        ...     truth=[["boat"], ["fish"]],
        ...     layers=(7,),
        ... )
        >>> found.scores.shape[0], found.group.tolist()
        (4, [False, True, True, False])
    """
    encoding = encode_plain(model, images, prompts)
    chosen = list_layers(sorted(model.anatomy.sites) if layers is None else layers)
    done = ablate_heads(
        model,
        encoding,
        how=how,
        heads=[(layer, head) for layer in chosen for head in range(model.n_heads)],
        objects=objects,
        truth=truth,
        caption=caption,
        metric="log_prob",
        batch_size=batch_size,
        progress=progress,
    )
    known = [n for n, target in enumerate(done.targets) if target.present is not None]
    absent = torch.tensor([not done.targets[n].present for n in known])
    if not len(known) or bool(absent.all()) or not bool(absent.any()):
        n_absent = int(absent.sum()) if known else 0
        msg = (
            f"of {len(known)} objects {n_absent} are absent: expected present and "
            "absent ones, to compare heads' effects on both; ask for objects of both "
            "kinds"
        )
        raise InputError(msg)
    grids = torch.stack([done.grid(target) for target in known])
    items = [
        target.row if target.item is None else target.item
        for target in (done.targets[n] for n in known)
    ]
    return HeadScores(
        finder="hallucination",
        measure=f"fall of absent minus present objects, {how} ablation",
        scores=-grids.float(),
        layers=tuple(chosen),
        items=torch.tensor(items),
        labels="groups",
        group=absent,
        before=None,
        weights=hash_weights(model),
        model=name_model(model),
    )
