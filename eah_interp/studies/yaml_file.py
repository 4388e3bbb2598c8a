"""YAML whose every value knows its line, so that an error can name it."""

from collections.abc import Sequence
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
