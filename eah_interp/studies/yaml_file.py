"""YAML whose every value knows its line, and the errors that name it."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eah_interp.errors import ExtraMissingError, InputError, SettingsError
from eah_interp.foreign_files import read_text

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
            SettingsError: If it is no YAML, a key stands there twice, or it is nested
                too deep or too large with its aliases written out; the line is named.
            ExtraMissingError: If PyYAML is not installed.
        """
        try:
            import yaml
        except ImportError as error:
            msg = "study files need PyYAML: pip install 'eah-interp[eval]'"
            raise ExtraMissingError(msg) from error
        path = Path(path)
        try:
            text = read_text(path)
        except InputError as error:
            msg = str(error).replace("cannot read", "cannot read the study file", 1)
            raise InputError(msg) from error
        loader: Any = None
        try:
            loader = _make_loader()(text)
            root = loader.get_single_node()
            _check_size(root)
            _check_keys(path, root)
            values = None if root is None else loader.construct_document(root)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(_explain_yaml(path, text, loader, error)) from error
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


# ---- Bounds: a few lines of YAML can stand for more values than there is memory.


MOST_DEEP = 32
"""How deep values may be nested: a study file needs seven."""

MOST_VALUES = 50_000
"""How many values a document may hold, an alias counted as what it stands for."""


@functools.cache
def _make_loader() -> Any:
    """Make PyYAML's safe loader with bounds, whose every error is YAML's own."""
    import yaml
    from yaml.composer import ComposerError
    from yaml.constructor import ConstructorError

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        depth = n_values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            self.depth += 1
            self.n_values += 1
            problem = ""
            if self.depth > MOST_DEEP:
                problem = f"values nested more than {MOST_DEEP} deep"
            elif self.n_values > MOST_VALUES:
                problem = f"more than {MOST_VALUES} values"
            if problem:
                raise ComposerError(None, None, problem, event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            if isinstance(node.value, str) and not _is_plain(node.value):
                problem = f"{node.value[:40]!a}, which is no text"
                raise ComposerError(None, None, problem, node.start_mark)
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002, is inherited
            try:
                return super().construct_object(node, deep=deep)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                # `!!int x`, 2001-99-99, an integer of ten thousand digits
                kind = node.tag.rpartition(":")[2]
                problem = f"{str(node.value)[:40]!r}, which is no {kind}"
                mark = node.start_mark
                raise ConstructorError(None, None, problem, mark) from error

    return Loader


def _is_plain(text: str) -> bool:
    """Whether a value can be written, and name a file: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _check_size(root: Any) -> None:
    """Refuse a document that its aliases make endless, or too large.

    Raises:
        yaml.YAMLError: If it is.
    """
    from yaml.composer import ComposerError

    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def measure(node: Any) -> int:
        if id(node) in open_nodes:
            problem = "an alias inside of what it stands for"
            raise ComposerError(None, None, problem, node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if isinstance(node.value, list) else []
            inner = [one for entry in children for one in _in_entry(entry)]
            sizes[id(node)] = 1 + sum(map(measure, inner))
            open_nodes.discard(id(node))
        if sizes[id(node)] > MOST_VALUES:
            problem = f"more than {MOST_VALUES} values, with its aliases written out"
            raise ComposerError(None, None, problem, node.start_mark)
        return sizes[id(node)]

    if root is not None:
        measure(root)


def _in_entry(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _explain_yaml(path: Path, text: str, loader: Any, error: Exception) -> str:
    """Write an error of PyYAML's with file and line."""
    mark = getattr(error, "problem_mark", None)
    place = getattr(error, "position", None)  # of a sign that YAML does not allow
    if mark is None and place is None and loader is not None:
        mark = loader.get_mark()
    line = text.count("\n", 0, place) + 1 if mark is None else mark.line + 1
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{path}:{line}: expected YAML, got {what}"


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
