"""Results on disk: a tidy table for everybody, and exact tensors to load again."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from eah_interp.arguments import check_path
from eah_interp.attribution.readouts import Target
from eah_interp.errors import (
    EAHError,
    ExtraMissingError,
    InputError,
    SettingsError,
    show_value,
)
from eah_interp.files import make_folder, save_bytes
from eah_interp.foreign_files import Kind as Column
from eah_interp.foreign_files import read_json, read_parquet
from eah_interp.indices import to_int, to_ints, to_list
from eah_interp.interventions.intervention import Intervention, known_kinds
from eah_interp.interventions.plugins import PLUGIN, describe_plugin, find_plugin
from eah_interp.lvlm.spans import ImagePart, ImageSpan

Kind = TypeVar("Kind", bound="Result")

FRAME, TENSORS, FIELDS = "frame.parquet", "tensors.parquet", "result.json"

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (ImagePart, ImageSpan)}


class Result:
    """A frozen, labelled result that can be saved and loaded.

    Every subclass is a frozen dataclass of tensors, labels and settings, and has a
    `frame()`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register a kind of result, so that it is loaded by name."""
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    def frame(self) -> pd.DataFrame:
        """List the result, one row for each number that it is about."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Write the result: `frame.parquet` to read anywhere, and what `load` needs.

        Args:
            folder: A folder; made if it is not there. What an earlier result of this
                name left in it is replaced, each file at once.

        Returns:
            The folder.

        Raises:
            ExtraMissingError: If pyarrow is not installed.
            SettingsError: If the folder or a file cannot be written, or the patch is
                code of a user's own whose source cannot be read.
        """
        folder = check_path("folder", folder, error=SettingsError)
        make_folder(folder)
        tensors: dict[str, Tensor] = {}
        fields = {"kind": type(self).__name__, "fields": _pack(self, "", tensors)}
        rows = [
            pd.DataFrame(
                {"field": name, "index": range(t.numel()), "value": _numbers(t)}
            )
            for name, t in tensors.items()
            if t.numel()
        ]
        flat = pd.concat(rows) if rows else pd.DataFrame()
        flat["field"] = flat["field"].astype("category")
        _write_table(folder / FRAME, self.frame())
        _write_table(folder / TENSORS, flat.reset_index(drop=True))
        save_bytes(json.dumps(fields, indent=1).encode(), folder / FIELDS)
        return folder

    @classmethod
    def load(cls: type[Kind], folder: str | Path) -> Kind:
        """Load what `save` wrote.

        Raises:
            InputError: If the folder holds no such result, or one that does not add up.
            ExtraMissingError: If pyarrow is not installed.
        """
        folder = check_path("folder", folder)
        try:
            saved = read_json(folder / FIELDS)
        except InputError as error:
            msg = f"{folder} holds no saved result: expected {FIELDS}; {error}"
            raise InputError(msg) from error
        name = saved.get("kind") if isinstance(saved, dict) else None
        kind = _KINDS.get(name) if isinstance(name, str) else None
        if kind is None or not issubclass(kind, cls):
            got = show_value(name)
            msg = f"{folder} holds a result of kind {got}, expected a {cls.__name__}"
            raise InputError(msg)
        try:
            with _pyarrow():
                table = read_parquet(folder / TENSORS, _COLUMNS)
        except InputError as error:
            msg = (
                f"cannot read {folder / TENSORS}: {error}; make the result again, or "
                "copy it whole"
            )
            raise InputError(msg) from error
        flat = {
            str(name): torch.tensor(part.sort_values("index")["value"].to_numpy())
            for name, part in table.groupby("field", observed=True)
        }
        unpack = _Unpacker(folder, flat)
        result = unpack(saved.get("fields"))
        if not isinstance(result, kind):
            raise unpack.refuse(f"expected a {name} under 'fields'")
        try:
            # What its parts say of each other is said by its table, or not at all.
            result.frame()
        except (*_UNFIT, EAHError) as error:
            msg = f"{folder} holds no {name} that adds up: {error!r:.200}"
            raise InputError(msg) from error
        found: Kind = result
        return found


_COLUMNS: dict[str, Column] = {"field": "text", "index": "integer", "value": "number"}

_UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""What Python, pandas and torch raise for parts that are no result's."""


def register(kind: type[Any]) -> type[Any]:
    """Register a dataclass as part of saved results."""
    _KINDS[kind.__name__] = kind
    return kind


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Write a value as JSON, its tensors elsewhere under dotted names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu()
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": name, "shape": list(value.shape), "dtype": kind}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _pack(
                getattr(value, field.name), f"{name}.{field.name}", tensors
            )
            for field in dataclasses.fields(value)
        }
        packed = {"class": type(value).__name__, "fields": fields}
        if isinstance(value, Intervention) and not _is_ours(type(value)):
            packed["code"] = describe_plugin(type(value))
        return packed
    if callable(value):  # a donor rule of a user's own
        return describe_plugin(value)
    if isinstance(value, Mapping):
        pairs = [[k, _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        return [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _is_ours(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == "eah_interp"


class _Unpacker:
    """Makes a result of what a folder holds, and says what in it is wrong."""

    def __init__(self, folder: Path, flat: Mapping[str, Tensor]) -> None:
        self._folder, self._flat = folder, flat

    def refuse(self, what: str) -> InputError:
        """Make the error of a file that was changed since it was saved."""
        msg = (
            f"{self._folder} holds a result that was cut short or changed: {what}; "
            "make it again, or take it from where it was saved"
        )
        return InputError(msg)

    def __call__(self, node: Any) -> Any:
        """Make a value of what stands for it."""
        if isinstance(node, list):
            return tuple(self(item) for item in node)
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            return self._tensor(node)
        if PLUGIN in node:
            return find_plugin(node)
        if "mapping" in node:
            pairs = node["mapping"]
            if not isinstance(pairs, list) or any(
                not isinstance(pair, list) or len(pair) != 2 for pair in pairs
            ):
                raise self.refuse("expected pairs under 'mapping'")
            if any(not isinstance(key, str | int) for key, _ in pairs):
                raise self.refuse("expected names or numbers as keys")
            return {key: self(value) for key, value in pairs}
        return self._instance(node)

    def _tensor(self, node: Mapping[str, Any]) -> Tensor:
        name, kind, shape = (node.get(key) for key in ("tensor", "dtype", "shape"))
        dtype = getattr(torch, kind, None) if isinstance(kind, str) else None
        sizes = () if shape == [] else to_ints(shape)
        if not isinstance(name, str) or not isinstance(dtype, torch.dtype):
            raise self.refuse(f"expected a tensor's name and dtype, got {kind!r}")
        if sizes is None or any(size < 0 for size in sizes):
            raise self.refuse(f"expected the shape of {name}, got {shape!r}")
        values = self._flat.get(name, torch.zeros(0))
        if values.numel() != math.prod(sizes):
            got = f"got {values.numel()}"
            raise self.refuse(f"expected {math.prod(sizes)} numbers of {name}, {got}")
        return values.to(dtype).view(sizes)

    def _instance(self, node: Mapping[str, Any]) -> Any:
        settings = {kind.__name__: kind for kind in known_kinds().values()}
        name, given = node.get("class"), node.get("fields")
        known = isinstance(name, str) and (_KINDS.get(name) or settings.get(name))
        if isinstance(node.get("code"), dict):
            known = find_plugin(node["code"])
        if not known or not dataclasses.is_dataclass(known):
            what = f"a saved result names {name!r}, which is no part of results"
            raise self.refuse(what)
        kind: Any = known
        wanted = {field.name for field in dataclasses.fields(kind)}
        needed = {
            field.name
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        }
        if not isinstance(given, dict) or not needed <= set(given) <= wanted:
            raise self.refuse(f"expected {', '.join(sorted(wanted))} of {name}")
        return kind(**{key: self(value) for key, value in given.items()})


def _numbers(tensor: Tensor) -> Any:
    return tensor.flatten().double().numpy()


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with _pyarrow():
        content = table.to_parquet(index=False, engine="pyarrow")
    save_bytes(content, path)


class _pyarrow:  # noqa: N801 - reads as `with _pyarrow():`
    """Turn a missing pyarrow into an error that names the extra."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ImportError):
            msg = "saving results needs pyarrow: pip install 'eah-interp[eval]'"
            raise ExtraMissingError(msg) from error


# ---- Names of heads, and which of a table's rows come first.


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
    """Put the object, row and position of each row's target beside its number.

    Args:
        table: Has a column `target`.
        targets: The targets.
    """
    facts = pd.DataFrame(
        {
            "object": [target.label for target in targets],
            "row": [target.row for target in targets],
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
        present: The objects that are in the image; not known when None.

    Returns:
        Columns `object row target position plain`, of a patched run `patched change`,
        and `present` (empty where it is not known). Objects that are there come first.

    Raises:
        SettingsError: If `present` names none of the objects.

    Example:
        >>> targets = [Target("boat", 0, 7, "boat"), Target("cup", 0, 7, "cup")]
        >>> runs = {"plain": torch.tensor([1.0, 2.0])}
        >>> list_logits(targets, runs, present=["cup"])["object"].tolist()
        ['cup', 'boat']
    """
    table = label_targets(pd.DataFrame({"target": range(len(targets))}), targets)
    table = table[["object", "row", "target", "position"]]
    for name, values in runs.items():
        table[name] = values.double().numpy()
    if "patched" in runs:
        table["change"] = table["patched"] - table["plain"]
    if present is None:
        unknown = pd.Series(pd.NA, index=table.index, dtype="boolean")
        return table.assign(present=unknown)
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
    return table.sort_values("present", ascending=False, kind="stable").reset_index(
        drop=True
    )


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
