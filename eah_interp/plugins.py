"""Code of a user's own: in files by its name and a hash of its source, not as code."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from eah_interp.arguments import by_name
from eah_interp.errors import SettingsError, show_value
from eah_interp.sources import read_lines, read_source

PLUGIN, SHA256 = "plugin", "sha256"
"""Keys under which a file names code."""

_known: dict[str, Any] = {}


@by_name
def register(value: Any) -> Any:
    """Let files name a function or class: a donor rule, a kind of intervention.

    What is used in Python is registered by being used, so this is for a session that
    opens what another one saved.

    Args:
        value: The function or class; another one of its name gives way.

    Returns:
        The same, so that it serves as a decorator.
    """
    _known[_name(value).partition(":")[2]] = value
    return value


def import_plugin(spec: str) -> Any:
    """Import code that a user named on the command line, and let files name it.

    Args:
        spec: `module:Name`, found as Python finds modules and in the working
            directory, or `path/to/file.py:Name`.

    Returns:
        What stands there.

    Raises:
        SettingsError: If it is written otherwise, or not there.

    Example:
        >>> import_plugin("eah_interp.interventions:PAI").__name__
        'PAI'
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        msg = f"a plugin is module:Name or path/to/file.py:Name, got {show_value(spec)}"
        raise SettingsError(msg)
    module = _import_file(Path(where)) if where.endswith(".py") else _import(where)
    value = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        msg = f"plugin {spec!r}: {where} has no function or class {name!r}"
        raise SettingsError(msg)
    return register(value)


def describe_plugin(value: Any) -> dict[str, str]:
    """Name code in a file: its module and name, and a hash of its source.

    The hash is of the text that defines it. What that text calls is not in it, so
    constants belong into the function or the class.

    Args:
        value: A function that captures no variables, or a class.

    Raises:
        SettingsError: If it has no source that can be read, or captures variables,
            whose values no hash of its source would tell.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> described = describe_plugin(PAI)
        >>> described["plugin"], len(described["sha256"])
        ('eah_interp.interventions.pai:PAI', 64)
    """
    remedy = "write it as a function or a class of a module, without captured variables"
    plain = inspect.unwrap(value) if isinstance(value, FunctionType) else value
    captured = isinstance(plain, FunctionType) and plain.__code__.co_freevars
    if captured:
        listed = ", ".join(captured)
        msg = f"{_name(value)} captures {listed}, which files cannot hold: {remedy}"
        raise SettingsError(msg)
    try:
        source = _read_source(value)
    except (OSError, TypeError) as error:
        msg = f"{value!r} has no source that can be read ({error}): {remedy}"
        raise SettingsError(msg) from error
    register(value)
    digest = hashlib.sha256(textwrap.dedent(source).strip().encode()).hexdigest()
    return {PLUGIN: _name(value), SHA256: digest}


def find_plugin(described: Mapping[str, Any]) -> Any:
    """Find the code that a file names, among what was imported because a user said so.

    Args:
        described: As `describe_plugin` wrote it; without a hash, any source will do.

    Raises:
        SettingsError: If it was not imported, or its source is another.
    """
    spec = described.get(PLUGIN)
    if not isinstance(spec, str) or set(described) - {PLUGIN, SHA256}:
        msg = f"expected {{plugin: module:Name}}, got {dict(described)!r}"
        raise SettingsError(msg)
    value = _known.get(spec.rpartition(":")[2])
    if value is None:
        msg = (
            f"this names code of a user's own, {spec}, which is imported only where "
            f"you say so: --plugin {spec} on the command line, or in Python import "
            "it and call eah_interp.interventions.register"
        )
        raise SettingsError(msg)
    wanted = described.get(SHA256)
    if wanted is not None and describe_plugin(value)[SHA256] != wanted:
        msg = (
            f"the source of {spec} is not the one that this was made with: expected "
            f"SHA-256 {wanted}, got {describe_plugin(value)[SHA256]}; use that "
            "version, or give the new one a name of its own"
        )
        raise SettingsError(msg)
    return value


def _read_source(value: Any) -> str:
    """Read the text that defines a function or a class.

    Raises:
        OSError: If it is not there.
        TypeError: If it is neither.
    """
    if isinstance(value, FunctionType):
        return read_source(value)
    if not isinstance(value, type):
        raise TypeError(f"a {type(value).__name__}")
    # Not inspect.getsource: before Python 3.13 it does not find a notebook's classes.
    functions = [one for one in vars(value).values() if isinstance(one, FunctionType)]
    for method in map(inspect.unwrap, functions):
        lines = read_lines(method)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                last = node.end_lineno or first
                if first <= method.__code__.co_firstlineno <= last:
                    return "".join(lines[first - 1 : last])
    raise OSError("no method of it stands in a file")


def _name(value: Any) -> str:
    module = getattr(value, "__module__", "?")
    return f"{module}:{getattr(value, '__qualname__', repr(value))}"


def _import(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: it must not hide an installed module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"plugin module {name!r} cannot be imported: {error}"
        raise SettingsError(msg) from error


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        msg = f"plugin file {path} does not exist"
        raise SettingsError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
