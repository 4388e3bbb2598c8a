"""Which recipients of an EAH broadcast its effect is owed to."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from eah_interp.attribution.cases.batches import check_batch_size
from eah_interp.attribution.cases.labels import name_head
from eah_interp.attribution.cases.pose import as_case
from eah_interp.attribution.cases.readouts import MetricName
from eah_interp.attribution.direct.heads import check_patch
from eah_interp.attribution.patching.recording import Recording, record
from eah_interp.attribution.patching.sides import (
    gather,
    split_items,
    take_item,
)
from eah_interp.attribution.recipients.broadcast_game import BroadcastGame, Player
from eah_interp.attribution.recipients.recipient_attribution import (
    Method,
    RecipientAttribution,
)
from eah_interp.attribution.recipients.shapley import (
    Coalition,
    Shares,
    check_orders,
    share_gains,
)
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH


def attribute_recipients(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    eah: EAH | None = None,
    method: Method = "alone",
    n_permutations: int = 64,
    seed: int = 0,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: str | Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> RecipientAttribution:
    """Attribute a broadcast's effect on an object to the heads that receive it.

    `"alone"`: the effect where only this head receives ("leave one in").
    `"without"`: the whole effect minus that where all others receive ("leave one
    out"). Heads interact, so neither sums to the whole; `"shapley"` does: the mean of
    what a head adds over all orders in which they could join. It is exact for up to 8
    heads that change, and sampled beyond, with standard errors.

    Donors are those of the whole broadcast throughout. (Where several layers are
    patched, a later layer could choose another donor if fewer heads received.)

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        eah: The broadcast; `EAH()` when None.
        method: How the effect is divided.
        n_permutations: Orders that are sampled for Shapley values of more than 8
            heads, half of them the others' reverses: even, at least 4.
        seed: Of the orders.
        objects: The words, such as `["boat", "fish"]`.
        metric: What is read; see `pose`.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        batch_size: Most copies in one forward pass; halved, with a warning, when
            memory runs out.
        progress: Whether to show a bar.

    Returns:
        Effects by target and recipient, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or a layer, head or method does
            not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If items of a batch are not independent in this model.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = attribute_recipients(
        ...     eah.load(), random_image(), objects=["dog"], method="shapley"
        ... )
        >>> bool((found.effects.sum(1) - found.total).abs().max() < 1e-5)
        True
    """
    eah = EAH() if eah is None else eah
    if method not in get_args(Method):
        msg = f"method must be one of {', '.join(get_args(Method))}, got {method!r}"
        raise SettingsError(msg)
    check_batch_size(batch_size)
    check_orders(n_permutations)
    check_patch(model, eah)
    case = as_case(
        model,
        images,
        prompts,
        objects=objects,
        metric=metric,
        caption=caption,
        synonyms=synonyms,
    )
    heads = range(model.n_heads) if eah.recipients == "all" else eah.recipients
    players = [(layer, head) for layer in eah.layers for head in heads]
    donors = {layer: torch.full((case.n_items,), -1) for layer in eah.layers}
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for item, indices, (settings,) in split_items(case, eah):
        run = record(model, take_item(case, item), settings)
        for layer, patch in run.patches.items():
            donors[layer][item] = patch.donors[0].cpu()
        game = None
        if settings is not None:
            game = BroadcastGame.of(
                model, run, players, batch_size=batch_size, progress=progress
            )
        lines = _divide(run, game, players, method, n_permutations, seed)
        for name, tensor in lines.items():
            parts.setdefault(name, []).append((indices, tensor))
    n_targets = len(case.readout.targets)
    whole = {name: gather(part, n_targets) for name, part in parts.items()}
    return RecipientAttribution(
        metric=case.readout.metric,
        targets=case.readout.targets,
        eah=eah,
        method=method,
        recipients=tuple(name_head(*player) for player in players),
        donors=donors,
        **whole,
    )


def _divide(
    run: Recording,
    game: BroadcastGame | None,
    players: Sequence[Player],
    method: Method,
    n_orders: int,
    seed: int,
) -> dict[str, Tensor]:
    """Divide one item's effect; a head that nothing is donated to has none."""
    blank = torch.zeros(len(run.values), len(players))
    lines = {"effects": blank, "errors": blank.clone()}
    if game is None or not game.players:
        values = run.values.cpu()
        return lines | {"plain": values, "patched": values}
    shares = _share(game, method, n_orders=n_orders, seed=seed)
    where = [players.index(player) for player in game.players]
    lines["effects"][:, where] = shares.values.T
    lines["errors"][:, where] = shares.errors.T
    plain, patched = game.worth([Coalition(), game.everyone])
    return lines | {"plain": plain, "patched": patched}


def _share(game: BroadcastGame, method: Method, *, n_orders: int, seed: int) -> Shares:
    n_players = len(game.players)
    if method == "shapley":
        return share_gains(n_players, game.worth, n_orders=n_orders, seed=seed)
    each = [Coalition([player]) for player in range(n_players)]
    if method == "without":
        each = [game.everyone - one for one in each]
    nobody, everyone, *found = game.worth([Coalition(), game.everyone, *each])
    changed = torch.stack(found)
    values = changed - nobody if method == "alone" else everyone - changed
    return Shares(values, torch.zeros_like(values))
