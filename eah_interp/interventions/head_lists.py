"""Heads that were found in a model, and are refused on another."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import to_int, to_list
from eah_interp.kinds import register
from eah_interp.lvlm.anatomy import PATCHED, name_model, name_unpatched
from eah_interp.lvlm.fingerprint import hash_weights

Head = tuple[int, int]
"""Layer and head, counted from 0."""

_NAME = re.compile(r"L(\d+)H(\d+)")


@register
@dataclass(frozen=True)
class HeadList:
    """Heads with the model that they were found in.

    What takes heads takes one of these, keeps it in files, and refuses it on a model
    of other weights. `free()` gives the heads alone, for who knows better.

    Attributes:
        heads: `(layer, head)` pairs, in the order in which they were found: the
            foremost first. Names such as `"L3H7"` are read too.
        model: The model's name; empty where it is not known.
        weights: Its `hash_weights`; empty where it is not known.

    Raises:
        SettingsError: If these are no heads, or one stands there twice.

    Example:
        >>> found = HeadList(("L3H7", (1, 0)), model="Llava (mine)", weights="77aa")
        >>> found.names, len(found), (1, 0) in found
        (('L3H7', 'L1H0'), 2, True)
    """

    KEYS: ClassVar[tuple[str, ...]] = ("heads", "model", "weights")

    heads: Sequence[Head | str]
    model: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", read_pairs(self.heads))

    @classmethod
    def of(cls, model: Any, heads: object) -> "HeadList":
        """Note which model heads were found in.

        Args:
            model: The model.
            heads: Pairs or names.
        """
        pairs = read_pairs(heads)
        return cls(pairs, model=name_model(model), weights=hash_weights(model))

    @property
    def pairs(self) -> tuple[Head, ...]:
        """The heads as `(layer, head)`."""
        return cast("tuple[Head, ...]", self.heads)

    @property
    def names(self) -> tuple[str, ...]:
        """The heads by name: `("L3H7", "L1H0")`."""
        return tuple(f"L{layer}H{head}" for layer, head in self.pairs)

    def free(self) -> tuple[Head, ...]:
        """Give the heads alone, which any model takes."""
        return self.pairs

    def top(self, k: int) -> "HeadList":
        """Keep the foremost `k` heads.

        Raises:
            SettingsError: If there are not so many.
        """
        n = to_int(k)
        if n is None or not 1 <= n <= len(self.heads):
            msg = f"k must be 1 to {len(self.heads)} heads, got {show_value(k)}"
            raise SettingsError(msg)
        return HeadList(self.pairs[:n], model=self.model, weights=self.weights)

    def check_belongs(self, model: Any) -> None:
        """Check that a model is the one that the heads were found in.

        Raises:
            SettingsError: If it is another.
        """
        check_origin(
            f"heads {', '.join(self.names[:3])}{', ...' if len(self) > 3 else ''}",
            model,
            name=self.model,
            weights=self.weights,
            remedy="find them in this model, or pass heads.free(), the pairs alone",
        )

    # How a value says that it belongs to a model: under this name in every class. A
    # public method of a result is wrapped, and does not travel to servers.
    _check_belongs = check_belongs

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold; `from_dict` reads it."""
        return {
            "heads": [list(pair) for pair in self.pairs],
            "model": self.model,
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadList":
        """Read what `to_dict` wrote.

        Raises:
            SettingsError: If these are no heads.
        """
        names = {name: str(values[name]) for name in ("model", "weights")}
        return cls(read_pairs(values["heads"]), **names)

    def __iter__(self) -> Iterator[Head]:
        """Walk the heads, the foremost first."""
        return iter(self.pairs)

    def __len__(self) -> int:
        """Count the heads."""
        return len(self.heads)


def check_origin(
    what: str, model: Any, *, name: str, weights: str, remedy: str
) -> None:
    """Check that something found in a model is used in that model.

    By the hash of the weights where both are known, else by the name.

    Args:
        what: What was found, in the plural.
        model: The model that it is to be used in.
        name: Name of the model that it was found in; empty where it is not known.
        weights: That model's `hash_weights`; empty where it is not known.
        remedy: What to do instead.

    Raises:
        SettingsError: If it is another.
    """
    here = name_model(model)
    own = hash_weights(model) if weights else ""
    if weights and own:
        if weights == own:
            return
    elif not name or name.partition(PATCHED)[0] == name_unpatched(model):
        return
    found_in = f"{name or 'a model'}{f' with weights {weights}' if weights else ''}"
    msg = (
        f"{what} were found in {found_in}, and this is {here}"
        f"{f' with weights {own}' if own else ''}: expected the same model; {remedy}"
    )
    raise SettingsError(msg)


def read_pairs(heads: object) -> tuple[Head, ...]:
    """Read heads given as pairs, names or a `HeadList`, in their order.

    Raises:
        SettingsError: If these are no heads, or one stands there twice.

    Example:
        >>> read_pairs(["L3H7", [1, 0]])
        ((3, 7), (1, 0))
    """
    if isinstance(heads, HeadList):
        return heads.pairs
    listed = to_list(heads) or []
    found: list[Head] = []
    for head in listed:
        name = _NAME.fullmatch(head) if isinstance(head, str) else None
        pair = name.groups() if name else to_list(head) or ()
        numbers = [int(part) if name else to_int(part) for part in pair]
        if len(numbers) == 2 and any(n is None or n < 0 for n in numbers):
            got = show_value(head)
            msg = f"layer and head must be integers of 0 or more, got {got}"
            raise SettingsError(msg)
        if len(numbers) != 2:
            found.clear()
            break
        layer, index = (int(number or 0) for number in numbers)
        found.append((layer, index))
    if not found or len(set(found)) != len(listed):
        msg = (
            "heads must be (layer, head) pairs or names such as 'L3H7', each once, "
            f"got {show_value(heads)}"
        )
        raise SettingsError(msg)
    return tuple(found)
