"""What is wrong in a study file, said with file, line and key."""

from collections.abc import Iterator
from typing import Any

from eah_interp.studies.plan.yaml_file import Place, YamlFile


def explain(file: YamlFile, error: Any, place: Place) -> Iterator[str]:
    """Say each of pydantic's errors with file, line, key, expected and got."""
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
