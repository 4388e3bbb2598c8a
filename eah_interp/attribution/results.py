"""Names of heads, and which of a table's rows come first."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

import pandas as pd
from torch import Tensor

from eah_interp.attribution.readouts import Target
from eah_interp.errors import NumericalError, SettingsError, show_value
from eah_interp.indices import to_int, to_list
from eah_interp.kinds import register

register(Target)


Found = TypeVar("Found")


def check_finite_result(found: Found, *, but: tuple[str, ...] = ()) -> Found:
    """Check that what a run of a model gave holds no NaN and no infinity.

    Args:
        found: A result, as it is about to be returned.
        but: Fields in which NaN stands for what was not measured.

    Returns:
        The result.

    Raises:
        NumericalError: If it does.
    """
    for name, tensor in _list_tensors(found, ""):
        if name.rpartition(".")[2] not in but and not bool(tensor.isfinite().all()):
            msg = (
                f"{name} of this {type(found).__name__} would hold NaN or infinity: "
                "expected finite activations and weights; load the model in another "
                "dtype (float16 overflows where bfloat16 does not), or look at what "
                "the patch does to it"
            )
            raise NumericalError(msg)
    return found


def _list_tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    parts: Iterable[tuple[object, object]] = ()
    if dataclasses.is_dataclass(value):
        parts = vars(value).items()
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, inside in parts:
        yield from _list_tensors(inside, f"{name}.{key}".strip("."))


def name_head(layer: int, head: int) -> str:
    """Name a head as the field does.

    Example:
        >>> name_head(3, 7)
        'L3H7'
    """
    return f"L{layer}H{head}"


def list_heads(
    targets: Sequence[Target], layers: Sequence[int], n_heads: int
) -> pd.DataFrame:
    """List target, object, row, position, layer, head and name of every head.

    Rows are in the order of a flattened `[target layer head]`.

    Example:
        >>> targets = [Target("boat", 0, 7, "boat")]
        >>> list_heads(targets, (1, 2), 2)["name"].tolist()
        ['L1H0', 'L1H1', 'L2H0', 'L2H1']
    """
    index = pd.MultiIndex.from_product(
        [range(len(targets)), layers, range(n_heads)],
        names=["target", "layer", "head"],
    )
    table = index.to_frame(index=False)
    table["name"] = "L" + table.layer.astype(str) + "H" + table["head"].astype(str)
    return label_targets(table, targets)


def label_targets(table: pd.DataFrame, targets: Sequence[Target]) -> pd.DataFrame:
    """Put what each row's target is about beside its number.

    That is the object, whether it is in the image, the item that was asked about, and
    the position that is read.

    Args:
        table: Has a column `target`.
        targets: The targets.
    """
    facts = pd.DataFrame(
        {
            "object": [target.label for target in targets],
            "present": pd.array([t.present for t in targets], dtype="boolean"),
            "row": [target.asked_of for target in targets],
            "position": [target.position for target in targets],
        }
    )
    labelled = facts.iloc[table["target"]].reset_index(drop=True)
    return pd.concat([labelled, table.reset_index(drop=True)], axis=1)


def list_logits(
    targets: Sequence[Target],
    runs: Mapping[str, Tensor],
    *,
    present: Iterable[str] | None = None,
) -> pd.DataFrame:
    """List each target's logit in the plain and, where there is one, the patched run.

    Args:
        targets: The targets.
        runs: A number for each target, by run.
        present: The objects that are in the image; what was told by `truth=` when None.

    Returns:
        Columns `object row target position plain`, of a patched run `patched change`,
        and `present` (empty where it is not known). Objects that are there come first.

    Raises:
        SettingsError: If `present` names none of the objects.

    Example:
        >>> import torch
        >>> targets = [Target("boat", 0, 7, "boat"), Target("cup", 0, 7, "cup")]
        >>> runs = {"plain": torch.tensor([1.0, 2.0])}
        >>> list_logits(targets, runs, present=["cup"])["object"].tolist()
        ['cup', 'boat']
    """
    table = label_targets(pd.DataFrame({"target": range(len(targets))}), targets)
    told = table["present"]
    table = table[["object", "row", "target", "position"]]
    for name, values in runs.items():
        table[name] = values.double().numpy()
    if "patched" in runs:
        table["change"] = table["patched"] - table["plain"]
    if present is None:
        return _present_first(table.assign(present=told))
    listed = [present] if isinstance(present, str) else _list_names(present)
    if listed is None or not all(isinstance(name, str) for name in listed):
        got = show_value(present)
        raise SettingsError(f"present must be a list of objects, got {got}")
    there = set(listed)
    if there and not there & set(table["object"]):
        named = ", ".join(dict.fromkeys(table["object"]))
        msg = f"present names none of the objects: expected some of {named}"
        raise SettingsError(msg)
    table["present"] = table["object"].isin(there).astype("boolean")
    return _present_first(table)


def _present_first(table: pd.DataFrame) -> pd.DataFrame:
    ordered = table.sort_values("present", ascending=False, kind="stable")
    return ordered.reset_index(drop=True)


def _list_names(names: object) -> list[Any] | None:
    return list(names) if isinstance(names, Set) else to_list(names)


def check_target(targets: Sequence[Target], target: int) -> None:
    """Refuse a target that is not there.

    Raises:
        SettingsError: If it is not.
    """
    number = to_int(target)
    if number is None or not 0 <= number < len(targets):
        got = show_value(target)
        msg = f"target {got} does not exist: expected 0 to {len(targets) - 1}"
        raise SettingsError(msg)


def label_cell(targets: Sequence[Target], number: int) -> dict[str, Any]:
    """Name a target in a row; its batch item where there are several."""
    target = targets[number]
    several = len({one.asked_of for one in targets}) > 1
    return {"object": target.label} | ({"row": target.asked_of} if several else {})


def name_targets(targets: Sequence[Target]) -> str:
    """Count targets and name the first of them.

    Example:
        >>> name_targets([Target("boat", 0, 7, "boat"), Target("cup", 0, 7, "cup")])
        '2 targets (boat, cup)'
    """
    named = list(dict.fromkeys(target.label for target in targets))
    listed = ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")
    plural = "" if len(targets) == 1 else "s"
    return f"{len(targets)} target{plural} ({listed})" if named else "no targets"


def largest(table: pd.DataFrame, k: int, *, by: str) -> pd.DataFrame:
    """List each target's `k` rows that are largest in absolute value.

    Args:
        table: Has a column `target`.
        k: How many.
        by: The column that is compared.

    Raises:
        SettingsError: If `k` is below 1, or there is no such column of numbers.

    Example:
        >>> table = pd.DataFrame({"target": [0, 0, 1], "effect": [1.0, -2.0, 0.5]})
        >>> largest(table, 1, by="effect")["effect"].tolist()
        [-2.0, 0.5]
    """
    number = to_int(k)
    if number is None or number < 1:
        msg = f"k must be at least 1, got {show_value(k)}"
        raise SettingsError(msg)
    named = isinstance(by, str) and by in table
    if not named or not pd.api.types.is_float_dtype(table[by]):
        numbers = table.select_dtypes("float").columns
        listed = ", ".join(numbers)
        msg = f"by={show_value(by)} is no column of numbers: expected {listed}"
        raise SettingsError(msg)
    order = table[by].abs().sort_values(ascending=False, kind="stable").index
    ordered = table.loc[order].sort_values("target", kind="stable")
    return ordered.groupby("target", sort=False).head(number).reset_index(drop=True)
