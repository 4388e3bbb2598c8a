"""Heads whose attention marks a place in the image: a large share, in one piece."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.runs import read_rows, visit_layers
from eah_interp.errors import InputError
from eah_interp.finders.scores import HeadScores
from eah_interp.indices import check_integer
from eah_interp.interventions.directions import encode_plain, find_last
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.fingerprint import hash_weights
from eah_interp.lvlm.inputs import repeat_rows

MOST_CHOSEN = 10
"""Heads of an item that are chosen for their entropy."""


@by_name
def find_localisation_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    chosen: int = MOST_CHOSEN,
    batch_size: int = 8,
    progress: bool = False,
) -> HeadScores:
    """Find the heads whose attention, where a word is read, marks a place in the image.

    Of each item: the heads with a large share of attention on the image in the prompt's
    last row, beyond the elbow of all heads' sorted shares; of these the `chosen` ones
    with the lowest spatial entropy. A head's score is in how many items it was chosen.
    The entropy is that of the masses of connected pieces (eight neighbours) of the
    attention above its mean on the picture's patches. Source: Kang et al., "Your Large
    Vision-Language Model Only Needs a Few Attention Heads for Visual Grounding",
    arXiv:2503.06287, which makes masks of the three foremost; heads whose attention
    fills the picture's bottom row are left out, as their release does. Of an image in
    several parts the first is looked at.

    The null exchanges the heads of each item: with it no head is chosen more often than
    others.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: Prompts that ask for a thing: "Where is the boat?".
        chosen: How many heads of an item are chosen.
        batch_size: Most items in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Scores by item and head: 1 where chosen.

    Raises:
        InputError: If images or prompts do not fit, or image tokens have no places.
        SettingsError: If the batch size or `chosen` is below 1.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> images = [random_image(seed) for seed in range(4)]
        >>> found = find_localisation_heads(eah.load(), images, "Where is the boat?")
        >>> found.scores.shape[0], float(found.scores.sum()) <= 40
        (4, True)
    """
    size = check_integer("batch_size", batch_size, least=1)
    n_chosen = check_integer("chosen", chosen, least=1)
    progress = check_flag("progress", progress)
    whole = encode_plain(model, images, prompts)
    n_items = len(whole["input_ids"])
    parts: list[Tensor] = []
    with tqdm(total=n_items, desc="items", disable=not progress) as bar:
        for start in range(0, n_items, size):
            items = list(range(start, min(start + size, n_items)))
            encoding = whole if len(items) == n_items else repeat_rows(whole, items)
            for row, grid in _read_maps(model, encoding):
                parts.append(choose_heads(row, grid, chosen=n_chosen))
            bar.update(len(items))
    if not parts:
        raise InputError("expected at least 1 item, got none")
    layers = tuple(sorted(model.anatomy.sites))
    return HeadScores(
        finder="localisation",
        measure="share of items in which it is chosen",
        scores=torch.stack(parts).view(len(parts), len(layers), -1).float(),
        layers=layers,
        items=torch.arange(len(parts)),
        labels="heads",
        weights=hash_weights(model),
        model=name_model(model),
    )


def _read_maps(model: Any, encoding: Any) -> list[tuple[Tensor, Tensor]]:
    """Read, for each item, every head's share on the image and its map of patches."""
    spans = model.spans(encoding)
    last = find_last(encoding)
    rows: list[Tensor] = []

    def look(point: PatchPoint) -> None:
        places, index = torch.unique(last, return_inverse=True)
        read = read_rows(point, places, range(point.call.n_heads))
        rows.append(read[torch.arange(len(last)), :, index.to(read.device)].cpu())

    visit_layers(model, encoding, look, layers=sorted(model.anatomy.sites))
    whole = torch.stack(rows, 1)
    found: list[tuple[Tensor, Tensor]] = []
    for item, of_item in enumerate(spans):
        part = next((span.parts[0] for span in of_item if span.parts), None)
        if part is None:
            msg = (
                f"the image tokens of item {item} have no places in the image: "
                "expected a grid of patches; localisation heads are not defined here"
            )
            raise InputError(msg)
        columns = [column for span in of_item for column in span.columns]
        share = whole[item][..., columns].sum(-1).flatten()
        grid = whole[item][..., torch.tensor(part.columns)]
        found.append((share, grid.flatten(0, 1)))
    return found


def choose_heads(
    share: Float[Tensor, " head"],
    maps: Float[Tensor, "head row column"],
    *,
    chosen: int = MOST_CHOSEN,
) -> Bool[Tensor, " head"]:
    """Choose heads of a large share on the image and a low spatial entropy.

    Args:
        share: Each head's attention on the image.
        maps: The same, by patch.
        chosen: Most heads that are chosen.
    """
    entropy, bottom = measure_entropy(maps)
    fit = (share >= find_elbow(share)) & ~bottom & entropy.isfinite()
    entropy = torch.where(fit, entropy, torch.inf)
    order = entropy.argsort(stable=True)[:chosen]
    found = torch.zeros_like(fit)
    found[order] = True
    return found & fit


def find_elbow(share: Float[Tensor, " head"]) -> float:
    """Find where sorted shares bend: the farthest from the chord of their curve.

    Example:
        >>> find_elbow(torch.tensor([0.1, 0.9, 0.1, 0.1, 0.8, 0.1])) < 0.2
        True
    """
    values = share.double().sort().values
    n = len(values)
    if n < 3 or float(values[-1]) == float(values[0]):
        return float(values[0])
    slope = (values[-1] - values[0]) / (n - 1)
    chord = values[0] + slope * torch.arange(n, dtype=torch.float64)
    return float(values[(values - chord).abs().argmax()])


def measure_entropy(
    maps: Float[Tensor, "head row column"],
) -> tuple[Float[Tensor, " head"], Bool[Tensor, " head"]]:
    """Measure the spatial entropy of maps, and find those that fill the bottom row.

    Entropy of the masses, above the map's mean, of connected pieces; infinite where
    nothing is above it.

    Args:
        maps: Attention by patch.

    Returns:
        The entropy, and whether all of the bottom row is above the mean.

    Example:
        >>> one, two = torch.zeros(2, 3, 4)
        >>> one[1, 1] = two[0, 0] = two[2, 3] = 1.0
        >>> measure_entropy(torch.stack([one, two]))[0].exp()
        tensor([1., 2.], dtype=torch.float64)
    """
    above = (maps.double() - maps.double().mean((1, 2), keepdim=True)).clamp(min=0)
    marked = above > 1e-12
    pieces = label_pieces(marked).flatten(1)
    n_heads, n_places = pieces.shape
    mass = torch.zeros(n_heads, n_places + 1, dtype=torch.float64)
    mass.scatter_add_(1, pieces, above.flatten(1))
    total = mass.sum(1, keepdim=True)
    entropy = torch.special.entr(mass / total).sum(1)
    entropy = torch.where(total[:, 0] > 0, entropy, torch.inf)
    return entropy, marked[:, -1].all(-1)


def label_pieces(
    marked: Bool[Tensor, "head row column"],
) -> Int[Tensor, "head row column"]:
    """Number the connected pieces of masks, eight neighbours a place; 0 is none.

    Example:
        >>> label_pieces(torch.tensor([[[True, False, True]]])).tolist()
        [[[1, 0, 3]]]
    """
    _, height, width = marked.shape
    places = torch.arange(1, height * width + 1, dtype=torch.float64)
    labels = places.view(height, width) * marked
    while True:
        # The largest number in reach spreads; as many rounds as the longest piece.
        spread = torch.nn.functional.max_pool2d(labels[:, None], 3, 1, 1)[:, 0]
        spread = spread * marked
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread
