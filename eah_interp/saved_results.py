"""Results on disk: a tidy table for everybody, and exact values to load again."""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from eah_interp.arguments import check_path
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
from eah_interp.indices import to_ints
from eah_interp.kinds import find_kind, needs_source
from eah_interp.plugins import PLUGIN, describe_plugin, find_plugin

FRAME, TENSORS, FIELDS = "frame.parquet", "tensors.parquet", "result.json"

MANIFEST = "manifest.json"
"""What a study's folder has in their place."""

_COLUMNS: dict[str, Column] = {"field": "text", "index": "integer", "value": "number"}

_UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""What Python, pandas and torch raise for parts that are no result's."""


def refuse_no_path(result: Any) -> SettingsError:
    """Make the error of a `save()` that says neither where, nor is in a trace."""
    name = type(result).__name__
    msg = (
        f"save() got no path: expected a folder to write the {name} to, as in "
        "save('runs/first'), and {name}.load('runs/first') to have it again; without a "
        "path, save() is nnsight's mark, inside a `with model.trace(...):` alone"
    )
    return SettingsError(msg.replace("{name}", name))


def save_result(result: Any, path: str | Path) -> Path:
    """Write a result: `frame.parquet` to read anywhere, and what `load_result` needs.

    Raises:
        ExtraMissingError: If pyarrow is not installed.
        SettingsError: If the folder or a file cannot be written, or the result holds
            code of a user's own whose source cannot be read, or what no file holds.
    """
    folder = check_path("path", path, error=SettingsError)
    tensors: dict[str, Tensor] = {}
    fields = {"kind": type(result).__name__, "fields": _pack(result, "", tensors)}
    content = json.dumps(fields, indent=1).encode()
    make_folder(folder)
    rows = [
        pd.DataFrame({"field": name, "index": range(t.numel()), "value": _numbers(t)})
        for name, t in tensors.items()
        if t.numel()
    ]
    nothing = pd.DataFrame({"field": [], "index": [], "value": []})
    flat = pd.concat(rows) if rows else nothing.astype({"index": "int64"})
    flat["field"] = flat["field"].astype("category" if rows else "str")
    _write_table(folder / FRAME, result.frame())
    _write_table(folder / TENSORS, flat.reset_index(drop=True))
    save_bytes(content, folder / FIELDS)
    return folder


def load_result(kind: type[Any], path: str | Path) -> Any:
    """Load what `save_result` wrote.

    Raises:
        InputError: If the folder holds no such result, or one that does not add up.
        ExtraMissingError: If pyarrow is not installed.
    """
    folder = check_path("path", path)
    study = find_kind("StudyRun") if _is_study(folder) else None
    if study is not None and issubclass(study, kind):
        return study.load(folder)
    try:
        saved = read_json(folder / FIELDS)
    except InputError as error:
        msg = f"{folder} holds no saved result: expected {FIELDS}; {error}"
        raise InputError(msg) from error
    name = saved.get("kind") if isinstance(saved, dict) else None
    found = find_kind(name) if isinstance(name, str) else None
    if found is None or not issubclass(found, kind):
        got = show_value(name)
        msg = f"{folder} holds a result of kind {got}, expected a {kind.__name__}"
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
    result: Any = unpack(saved.get("fields"))
    if not isinstance(result, found):
        raise unpack.refuse(f"expected a {name} under 'fields'")
    try:
        # What its parts say of each other is said by its table, or not at all.
        result.frame()
    except (*_UNFIT, EAHError) as error:
        msg = f"{folder} holds no {name} that adds up: {error!r:.200}"
        raise InputError(msg) from error
    return result


def _is_study(folder: Path) -> bool:
    """Tell a study's folder, which is as its run left it, from a saved result's."""
    return (folder / MANIFEST).exists() and not (folder / FIELDS).exists()


# ---- Values as JSON, tensors apart.


LIST, TABLE, DTYPE, PNG = "list", "table", "torch", "png"
"""Keys under which a value that is neither tensor, tuple nor label stands."""


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
        if needs_source(type(value)):
            packed["code"] = describe_plugin(type(value))
        return packed
    if isinstance(value, Mapping):
        pairs = [[k, _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        listed = [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {LIST: listed} if isinstance(value, list) else listed
    return _pack_single(value, name)


def _pack_single(value: Any, name: str) -> Any:
    """Write a value that holds no tensors.

    Raises:
        SettingsError: If no file of a result holds such a value.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, pd.DataFrame):
        return {TABLE: _pack_table(value)}
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, Image.Image):
        return {PNG: _write_image(value)}
    if callable(value):  # a donor rule of a user's own
        return describe_plugin(value)
    msg = (
        f"{name.lstrip('.')} is a {type(value).__name__}, which no file of a result "
        "holds: expected tensors, texts, numbers, and lists and mappings of them"
    )
    raise SettingsError(msg)


def _pack_table(table: pd.DataFrame) -> list[Any]:
    """Write a table's columns: name, dtype and values, None where one is missing."""
    return [
        [name, str(column.dtype), [_plain(value) for value in column.tolist()]]
        for name, column in table.items()
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        listed = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(one) for one in listed]
    return None if pd.isna(value) else value


def _write_image(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class _Unpacker:
    """Makes a result of what a folder holds, and says what in it is wrong."""

    def __init__(self, folder: Path, flat: Mapping[str, Tensor]) -> None:
        self._folder, self._flat = folder, flat
        self._readers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "tensor": self._tensor,
            PLUGIN: find_plugin,
            LIST: self._list,
            TABLE: self._table,
            DTYPE: self._dtype,
            PNG: self._image,
            "mapping": self._mapping,
        }

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
        for key, read in self._readers.items():
            if key in node:
                return read(node)
        return self._instance(node)

    def _tensor(self, node: Mapping[str, Any]) -> Tensor:
        name, kind, shape = (node.get(key) for key in ("tensor", "dtype", "shape"))
        dtype = getattr(torch, kind, None) if isinstance(kind, str) else None
        sizes = () if shape == [] else to_ints(shape)
        if not isinstance(name, str) or not isinstance(dtype, torch.dtype):
            raise self.refuse(
                f"expected a tensor's name and dtype, got {show_value(kind)}"
            )
        if sizes is None or any(size < 0 for size in sizes):
            raise self.refuse(f"expected the shape of {name}, got {show_value(shape)}")
        values = self._flat.get(name, torch.zeros(0))
        if values.numel() != math.prod(sizes):
            got = f"got {values.numel()}"
            raise self.refuse(f"expected {math.prod(sizes)} numbers of {name}, {got}")
        return values.to(dtype).view(sizes)

    def _mapping(self, node: Mapping[str, Any]) -> dict[Any, Any]:
        pairs = node["mapping"]
        if not isinstance(pairs, list) or any(
            not isinstance(pair, list) or len(pair) != 2 for pair in pairs
        ):
            raise self.refuse("expected pairs under 'mapping'")
        if any(not isinstance(key, str | int) for key, _ in pairs):
            raise self.refuse("expected names or numbers as keys")
        return {key: self(value) for key, value in pairs}

    def _list(self, node: Mapping[str, Any]) -> list[Any]:
        if not isinstance(node[LIST], list):
            raise self.refuse(f"expected a list, got {show_value(node[LIST])}")
        return [self(item) for item in node[LIST]]

    def _dtype(self, node: Mapping[str, Any]) -> torch.dtype:
        found = getattr(torch, str(node[DTYPE]), None)
        if not isinstance(found, torch.dtype):
            raise self.refuse(f"expected a dtype, got {show_value(node[DTYPE])}")
        return found

    def _table(self, node: Mapping[str, Any]) -> pd.DataFrame:
        try:
            series = {
                name: pd.Series(values, dtype=dtype)
                for name, dtype, values in node[TABLE]
            }
            return pd.DataFrame(series)
        except _UNFIT as error:
            raise self.refuse(f"expected a table's columns: {error!r:.100}") from error

    def _image(self, node: Mapping[str, Any]) -> Image.Image:
        try:
            content = base64.b64decode(node[PNG], validate=True)
            found = Image.open(io.BytesIO(content), formats=("PNG",))
            return found.copy()  # read whole, and of the plain class
        except (*_UNFIT, OSError, Image.DecompressionBombError) as error:
            raise self.refuse(f"expected an image: {error!r:.100}") from error

    def _instance(self, node: Mapping[str, Any]) -> Any:
        name, given = node.get("class"), node.get("fields")
        known = find_kind(name)
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
        values = {key: self(value) for key, value in given.items()}
        for field in dataclasses.fields(kind):
            # JSON's NaN is a float wherever it stands: also for a layer, or a name.
            may = any(word in str(field.type) for word in ("float", "Any", "object"))
            if not may and _holds_no_number(values.get(field.name)):
                raise self.refuse(f"expected no NaN as {field.name} of {name}")
        try:
            return kind(**values)
        except EAHError:
            raise
        except _UNFIT as error:  # such as a text where a number was
            raise self.refuse(f"{name} cannot be made: {error!r:.100}") from error


def _holds_no_number(value: Any) -> bool:
    """Return whether a NaN or an infinity stands in a value, or in what it lists."""
    if isinstance(value, list | tuple):
        return any(map(_holds_no_number, value))
    if isinstance(value, Mapping):
        return any(map(_holds_no_number, value.values()))
    return isinstance(value, float) and not math.isfinite(value)


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
