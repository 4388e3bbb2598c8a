"""YAML whose every value knows its line, and the errors that name it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eah_interp.errors import ExtraMissingError, InputError, SettingsError

Place = Sequence[str | int]
"""A way into a document: `("conditions", 0, "beta")`."""


@dataclass(frozen=True)
class YamlFile:
    """A document: its values, and where they stand.

    Attributes:
        path: The file.
        values: What it says.
        root: PyYAML's node of the whole document.
    """

    path: Path
    values: Any
    root: Any

    @classmethod
    def read(cls, path: str | Path) -> "YamlFile":
        """Read a file.

        Raises:
            InputError: If it cannot be read.
            SettingsError: If it is no YAML, or a key stands there twice; the line is
                named.
            ExtraMissingError: If PyYAML is not installed.
        """
        try:
            import yaml
        except ImportError as error:
            msg = "study files need PyYAML: pip install 'eah-interp[eval]'"
            raise ExtraMissingError(msg) from error
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            msg = f"cannot read the study file {path}: {reason}"
            raise InputError(msg) from error
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            _check_keys(path, root)
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            what = getattr(error, "problem", None) or " ".join(str(error).split())
            msg = f"{where}: expected YAML, got {what}"
            raise SettingsError(msg) from error
        return cls(path, values, root)

    def find(self, place: Place) -> "Found":
        """Find where a value stands; what is not in the document is stepped over.

        Args:
            place: Keys and numbers that lead there.
        """
        node, line = self.root, 1
        kept: list[str | int] = []
        for step in place:
            children = getattr(node, "value", None)
            listed: list[Any] = children if isinstance(children, list) else []
            for number, entry in enumerate(listed):
                key, value = entry if isinstance(entry, tuple) else (None, entry)
                if step == (number if key is None else key.value):
                    line = (value if key is None else key).start_mark.line + 1
                    kept.append(step)
                    node = value
                    break
        return Found(line, tuple(kept))


@dataclass(frozen=True)
class Found:
    """Where something stands in a document.

    Attributes:
        line: Counted from 1.
        place: As much of the way to it as is in the document.
    """

    line: int
    place: Place


def _check_keys(path: Path, node: Any) -> None:
    """Refuse a key that stands twice: YAML would silently take the last."""
    if node is None or not isinstance(node.value, list):
        return
    seen: dict[str, int] = {}
    for entry in node.value:
        if isinstance(entry, tuple):
            key, value = entry
            line = key.start_mark.line + 1
            if str(key.value) in seen:
                msg = (
                    f"{path}:{line}: expected every key once, got {key.value!r} again "
                    f"(first in line {seen[str(key.value)]})"
                )
                raise SettingsError(msg)
            seen[str(key.value)] = line
            _check_keys(path, value)
        else:
            _check_keys(path, entry)


# ---- What is wrong in it, with file, line and key.


def explain(file: YamlFile, error: Any, place: Place) -> Iterator[str]:
    """Write each of pydantic's errors with file, line, key, expected and got."""
    said: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for one in error.errors(include_url=False):
        key = one.get("ctx", {}).get("key")
        missing = one["type"] == "missing"
        where = prefix(file, [*place, *one["loc"], *([] if key is None else [key])])
        if missing:
            where += f"{one['loc'][-1]}: "
        what = "this key" if missing else one["msg"].replace("Input should be ", "")
        wrong = repr(one["input"] if key is None else key)
        if one["type"] == "union_tag_invalid":
            what = f"source to be one of {one['ctx']['expected_tags']}"
        said.setdefault(where, []).append(what)
        short = wrong if len(wrong) <= 60 else wrong[:57] + "..."
        got[where] = "none" if missing else short
    for where, expected in said.items():
        yield f"{where}expected {' or '.join(expected)}, got {got[where]}"


def locate(file: YamlFile, place: Place, entry: Any, message: str) -> str:
    """Name the key that a refusal of ours is about: messages begin with its name."""
    where = list(place)
    words = message.split()[:3]
    if isinstance(entry, dict):
        keys: list[tuple[str, ...]] = [(str(key),) for key in entry]
        inner = [(str(k), v) for k, v in entry.items() if isinstance(v, dict)]
        keys += [(key, str(setting)) for key, values in inner for setting in values]
        named = [key for key in keys if key[-1] in words]
        where += named[-1] if named else ()
    return f"{prefix(file, where)}{message}"


def prefix(file: YamlFile, where: Place) -> str:
    """Write `study.yaml:7: conditions.1.beta: `."""
    alone = isinstance(file.values, dict) and isinstance(file.values.get("items"), dict)
    if alone and where[:1] == ["items"]:  # the list that was put around one source
        where = ["items", *where[2:]]
    if list(where[:1]) == ["conditions"] and len(where) == 3:
        inside = file.find([*where[:2], "sweep", where[2]])
        where = inside.place if where[2] in inside.place else where
    found = file.find(where)
    dotted = ".".join(map(str, found.place))
    return f"{file.path}:{found.line}: {dotted}: " if dotted else f"{file.path}: "
