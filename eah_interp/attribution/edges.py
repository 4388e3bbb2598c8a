"""Edges of a decoder by name: who writes into the stream, and who reads it there.

A sender is a head (`L3H7`), what an MLP adds (`L3.mlp`), what a layer has instead of
attention (`L3.linear_attn`), or what enters the first layer (`embedding`, or of it
`image` and `text`). A receiver is one input of a head (`L5H2.q`; keys and values that
heads share are a group's, `L5G1.k`), an MLP (`L5.mlp`) or the `logit`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eah_interp.attribution.results import name_head
from eah_interp.errors import ModelError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import to_list
from eah_interp.lvlm.anatomy import name_model

SenderKind = Literal["head", "mlp", "mixer", "embedding"]

ReceiverInput = Literal["q", "k", "v", "mlp", "logit"]

EMBEDDINGS = ("embedding", "image", "text")
"""What enters the first layer: all of it, or at the image's or the other tokens."""

LOGIT = "logit"

Names = str | Sequence[str | Sequence[str]]
"""How nodes are named: each by itself, or several together in a list of their own."""


@dataclass(frozen=True)
class Sender:
    """Something that writes into the residual stream.

    Attributes:
        name: `L3H7`, `L3.mlp`, `embedding`.
        layer: Decoder layer; -1 for what enters the first.
        kind: What it is.
        head: Query head, of a head.
    """

    name: str
    layer: int
    kind: SenderKind
    head: int | None = None

    @property
    def place(self) -> tuple[int, int]:
        """When it writes: the layer, and 0 in its first half, 1 in its second."""
        return self.layer, int(self.kind in ("mlp", "embedding"))


@dataclass(frozen=True)
class Receiver:
    """Something that reads the residual stream.

    Attributes:
        name: `L5H2.q`, `L5G1.k`, `L5.mlp`, `logit`.
        layer: Decoder layer; the number of layers for the logit.
        input: What of it is computed from the stream.
        index: Query head of a query, key/value group of a key or value; else 0.
        place: When it reads, to be compared with the place of a sender.
    """

    name: str
    layer: int
    input: ReceiverInput
    index: int
    place: tuple[int, int]


Senders = tuple[Sender, ...]
"""Senders whose changes are sent together; mostly one."""

Receivers = tuple[Receiver, ...]
"""Receivers that get the change together; mostly one."""


def check_stream(model: Any) -> None:
    """Check that what a component adds stays the same along the residual stream.

    Raises:
        UnsupportedError: If a layer does anything but add to its input, or the model
            has no norm after its last layer.
    """
    for layer, writers in model.anatomy.writers.items():
        if not writers.adds_up:
            msg = (
                f"{name_model(model)}: layer {layer} does not return its input plus "
                "what its attention and its MLP add (it scales the sum, begins a new "
                "one, or no module returns what is added), so what a head writes does "
                "not reach later layers as it is, and an edge has no exact effect; "
                "use patch_heads or approximate_heads, which need none"
            )
            raise UnsupportedError(msg)
    if model.anatomy.final_norm is None:
        msg = (
            f"{name_model(model)} has no norm after its last layer that was found, so "
            "an edge to the logit has no place; use patch_heads"
        )
        raise UnsupportedError(msg)


def list_senders(model: Any) -> tuple[Sender, ...]:
    """List all that writes into the stream, in the order of a forward pass.

    Example:
        >>> import eah_interp as eah
        >>> [sender.name for sender in list_senders(eah.load())][::9][:3]
        ['embedding', 'L0.mlp', 'L1.mlp']
    """
    found = [Sender("embedding", -1, "embedding")]
    for layer, writers in sorted(model.anatomy.writers.items()):
        if layer in model.anatomy.sites:
            found += [
                Sender(name_head(layer, head), layer, "head", head)
                for head in range(model.n_heads)
            ]
        elif writers.instead is not None:
            found.append(Sender(f"L{layer}.{writers.instead}", layer, "mixer"))
        if writers.mlp is not None:
            found.append(Sender(f"L{layer}.mlp", layer, "mlp"))
    return tuple(found)


def list_receivers(model: Any) -> tuple[Receiver, ...]:
    """List all that reads the stream, in the order of a forward pass.

    Example:
        >>> import eah_interp as eah
        >>> found = [one.name for one in list_receivers(eah.load())]
        >>> found[:1], found[8:10], found[16:18]
        (['L0H0.q'], ['L0G0.k', 'L0G1.k'], ['L0.mlp', 'L1H0.q'])
    """
    anatomy = model.anatomy
    own_keys = anatomy.n_kv_heads == anatomy.n_heads
    found: list[Receiver] = []
    for layer, writers in sorted(anatomy.writers.items()):
        if layer in anatomy.sites:
            found += [
                Receiver(f"L{layer}H{i}.q", layer, "q", i, (layer, 0))
                for i in range(anatomy.n_heads)
            ]
            letter = "H" if own_keys else "G"
            for what in ("k", "v"):
                found += [
                    Receiver(f"L{layer}{letter}{i}.{what}", layer, what, i, (layer, 0))
                    for i in range(anatomy.n_kv_heads)
                ]
        if writers.mlp is not None:
            place = (layer, int(not writers.side_by_side))
            found.append(Receiver(f"L{layer}.mlp", layer, "mlp", 0, place))
    end = anatomy.n_layers
    return (*found, Receiver(LOGIT, end, "logit", 0, (end, 0)))


def find_senders(model: Any, wanted: Names | None) -> tuple[Senders, ...]:
    """Find senders by name; each by itself, all of them, when None.

    Raises:
        SettingsError: If there is none, one is named twice, or one does not exist.

    Example:
        >>> import eah_interp as eah
        >>> found = find_senders(eah.load(), ["L1H2", ["L0H0", "L0.mlp"], "image"])
        >>> [name_set(one) for one in found]
        ['L1H2', 'L0H0+L0.mlp', 'image']
    """
    known = list_senders(model)
    if wanted is None:
        return tuple((sender,) for sender in known)
    by_name = {sender.name: sender for sender in known}
    by_name |= {name: Sender(name, -1, "embedding") for name in EMBEDDINGS}
    example = '"L3H7", "L3.mlp" or "embedding" (or of it "image", "text")'
    named = _split_names("senders", wanted, example)
    found = []
    for one in named:
        for name in one:
            if name not in by_name:
                msg = f"{name!r} sends nothing in this model: expected {example}"
                _check_head(model, name)
                raise SettingsError(f"{msg}, within {_bounds(model)}")
        found.append(tuple(by_name[name] for name in one))
    return tuple(found)


_GROUPED = re.compile(r"L(\d+)H(\d+)\.([kv])")

_LAYER = re.compile(r"L(\d+)")

_WHOLE_HEAD = re.compile(r"L(\d+)H(\d+)")


def find_receivers(model: Any, wanted: Names) -> tuple[Receivers, ...]:
    """Find receivers by name: `L5H2.q`, `L5G1.k`, `L5.mlp`, `logit`.

    `L5H2` is its query, key and value, each by itself; `L5` all that reads in that
    layer; `all` is all there is.

    Raises:
        SettingsError: If there is none, one is named twice, or one does not exist.

    Example:
        >>> import eah_interp as eah
        >>> found = find_receivers(eah.load(), ["L1H5", "logit"])
        >>> [name_set(one) for one in found]
        ['L1H5.q', 'L1G2.k', 'L1G2.v', 'logit']
    """
    known = list_receivers(model)
    by_name = {receiver.name: receiver for receiver in known}
    example = '"L5H2.q", "L5.mlp", "logit", a head "L5H2", a layer "L5" or "all"'
    if isinstance(wanted, str) and wanted == "all":
        return tuple((receiver,) for receiver in known)
    found: list[Receivers] = []
    for one in _split_names("receivers", wanted, example):
        if len(one) == 1 and one[0] not in by_name:
            found += [(each,) for each in _open(model, one[0], known, example)]
            continue
        for name in one:
            if name not in by_name:
                raise _no_receiver(model, name, example)
        together = tuple(by_name[name] for name in one)
        if len(together) > 1 and any(each.input == "logit" for each in together):
            msg = (
                f"{name_set(together)} names the logit with others: what reaches it "
                "directly is the whole outcome of that run; name the logit by itself"
            )
            raise SettingsError(msg)
        found.append(together)
    names = [name_set(one) for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"receivers: {', '.join(twice)} is named twice: expected each once"
        raise SettingsError(msg)
    return tuple(found)


def _open(
    model: Any, name: str, known: Sequence[Receiver], example: str
) -> list[Receiver]:
    """List what a whole head or layer reads by."""
    if head := _WHOLE_HEAD.fullmatch(name):
        _check_head(model, name)
        layer, index = int(head[1]), int(head[2])
        group = index * model.anatomy.n_kv_heads // model.n_heads
        own = {"q": index, "k": group, "v": group}
        return [
            one
            for one in known
            if one.layer == layer and own.get(one.input, -1) == one.index
        ]
    if (found := _LAYER.fullmatch(name)) and int(found[1]) < model.anatomy.n_layers:
        return [one for one in known if one.layer == int(found[1])]
    raise _no_receiver(model, name, example)


def _no_receiver(model: Any, name: str, example: str) -> SettingsError:
    if found := _GROUPED.fullmatch(name):
        layer, head = int(found[1]), int(found[2])
        if layer in model.anatomy.sites and head < model.n_heads:
            group = head * model.anatomy.n_kv_heads // model.n_heads
            each = model.n_heads // model.anatomy.n_kv_heads
            last = (group + 1) * each - 1
            return SettingsError(
                f"{name!r} is not head {head}'s own: heads {group * each} to {last} "
                f"share it; expected the group's, L{layer}G{group}.{found[3]}"
            )
    _check_head(model, name)
    msg = f"{name!r} receives nothing in this model: expected {example}"
    return SettingsError(f"{msg}, within {_bounds(model)}")


def _check_head(model: Any, name: str) -> None:
    """Say why a layer has no heads, where that is what is wrong with a name."""
    found = re.match(r"L(\d+)[HG]\d+", name)
    if found and int(found[1]) in model.anatomy.unfit:
        raise ModelError(
            f"{name!r} does not exist: layer {found[1]} has no heads, "
            f"{model.anatomy.unfit[int(found[1])]}"
        )
    if found and _WHOLE_HEAD.fullmatch(name):
        layer, head = (int(number) for number in re.findall(r"\d+", name))
        if layer >= model.anatomy.n_layers or head >= model.n_heads:
            raise SettingsError(f"{name!r} does not exist: expected {_bounds(model)}")


def _bounds(model: Any) -> str:
    return (
        f"layers 0 to {model.anatomy.n_layers - 1} and heads 0 to {model.n_heads - 1}"
    )


def _split_names(role: str, wanted: object, example: str) -> list[tuple[str, ...]]:
    """Read names, or lists of names that go together."""
    listed = [wanted] if isinstance(wanted, str) else to_list(wanted)
    parts: list[Any] = [
        [one] if isinstance(one, str) else to_list(one) for one in listed or ()
    ]
    fit = all(part and all(isinstance(name, str) for name in part) for part in parts)
    if not parts or not fit:
        msg = f"{role} must be a list of names such as {example}"
        raise SettingsError(f"{msg}, got {show_value(wanted)}")
    named = [tuple(str(name) for name in part) for part in parts]
    twice = [one for one in named if named.count(one) > 1 or len(set(one)) < len(one)]
    if twice:
        msg = f"{role}: {'+'.join(twice[0])} is named twice: expected each once"
        raise SettingsError(msg)
    return named


def name_set(nodes: Iterable[Sender] | Iterable[Receiver]) -> str:
    """Name nodes that go together.

    Example:
        >>> name_set([Sender("L0H1", 0, "head", 1), Sender("L0.mlp", 0, "mlp")])
        'L0H1+L0.mlp'
    """
    return "+".join(node.name for node in nodes)


def is_edge(senders: Senders, receivers: Receivers) -> bool:
    """Tell whether all of some senders write before some receivers read."""
    last = max(sender.place for sender in senders)
    return last < min(receiver.place for receiver in receivers)
