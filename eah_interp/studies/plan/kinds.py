"""Conditions as a study file writes them: by the kind of what is done."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from eah_interp.studies.plan.conditions import (
    BASELINE,
    KINDS,
    Condition,
    control_conditions,
)
from eah_interp.studies.plan.schema import make_base

PRESETS = ("paper", "official")
"""Class methods that make a kind's published settings."""


def list_kinds() -> dict[str, Any]:
    """List the settings that a study can try, by kind: those of `conditions.KINDS`.

    Example:
        >>> list_kinds()["eah"].__name__
        'EAH'
    """
    return dict(KINDS)


def read_condition(entry: Any, *, seed: int) -> tuple[Condition, ...]:
    """Read an entry of `conditions:`.

    Args:
        entry: `baseline`, a kind, `{kind: ..., ...}`, `{controls: ...}` or
            `{sweep: {setting: [...]}, ...}`.
        seed: For settings that have a seed and are given none.

    Returns:
        One condition; several for controls and sweeps.

    Raises:
        ValueError: If it says something else; pydantic's error has the place.

    Example:
        >>> [c.name for c in read_condition({"sweep": {"layers": [0, 1]}}, seed=0)]
        ['EAH layers=0', 'EAH layers=1']
    """
    kinds = list_kinds()
    if entry == "baseline":
        return (BASELINE,)
    if isinstance(entry, str) and entry in kinds:
        entry = {"kind": entry}
    if isinstance(entry, Mapping) and "controls" in entry:
        given = make_controls_schema().model_validate(entry).controls
        eah = make_settings("eah", {} if given is True else given, seed=seed)
        return control_conditions(eah)
    if isinstance(entry, Mapping) and "sweep" in entry:
        return _read_sweep(entry, seed=seed)
    if isinstance(entry, Mapping) and "kind" in entry:
        name, kind, patch = _make(entry, seed=seed)
        return (Condition(name or _name(kind, entry), patch),)
    msg = (
        f"expected baseline, {', '.join(kinds)}, or keys with values that begin with "
        f"kind, controls or sweep, got {entry!r}"
    )
    raise ValueError(msg)


def make_settings(kind: str, values: Mapping[str, Any], *, seed: int) -> Any:
    """Make a kind's settings, `preset` included."""
    return _make({"kind": kind, **values}, seed=seed)[2]


def _make(entry: Mapping[str, Any], *, seed: int) -> tuple[str | None, str, Any]:
    kinds = list_kinds()
    kind = entry["kind"]
    if kind not in kinds:
        msg = f"kind must be one of {', '.join(kinds)}, got {kind!r}"
        raise ValueError(msg)
    checked = make_kind_schema(kind).model_validate(entry)
    given = {name: getattr(checked, name) for name in checked.model_fields_set}
    _, name, preset = (given.pop(key, None) for key in ("kind", "name", "preset"))
    settings = kinds[kind]
    if "seed" in {field.name for field in dataclasses.fields(settings)}:
        given.setdefault("seed", seed)
    try:
        make = settings if preset is None else getattr(settings, preset)
        return name, kind, make(**{key: _frozen(v) for key, v in given.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error


def _read_sweep(entry: Mapping[str, Any], *, seed: int) -> tuple[Condition, ...]:
    base = {"kind": "eah", **entry}
    axes = base.pop("sweep")
    if not isinstance(axes, Mapping) or not axes:
        msg = f"sweep must be settings with lists of values, got {axes!r}"
        raise ValueError(msg)
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            msg = f"sweep of {name} must be a list of values, got {values!r}"
            raise ValueError(msg)
    found = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        name, kind, patch = _make(base | changes, seed=seed)
        first = name or _name(kind, {"preset": base.get("preset")})
        parts = [f"{key}={_short(value)}" for key, value in changes.items()]
        found.append(Condition(" ".join([first, *parts]), patch))
    return tuple(found)


def _name(kind: str, entry: Mapping[str, Any]) -> str:
    """Name a condition that was given no name: kind, preset, and what differs."""
    words = [list_kinds()[kind].__name__]
    words += [entry["preset"]] if entry.get("preset") else []
    changed = {k: v for k, v in entry.items() if k not in ("kind", "preset", "name")}
    return " ".join([*words, *(f"{k}={_short(v)}" for k, v in changed.items())])


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value))
    return str(value)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@functools.cache
def make_controls_schema() -> Any:
    """Make the model of `controls: true` or `controls: {setting: ...}`."""
    base = make_base()
    from pydantic import create_model

    return create_model(
        "Controls",
        __base__=base,
        controls=(Literal[True] | dict[str, Any], ...),
    )


@functools.cache
def make_kind_schema(kind: str) -> Any:
    """Make the model of a kind from the fields of its settings."""
    base = make_base()
    from pydantic import BeforeValidator, create_model

    settings = list_kinds()[kind]
    presets = tuple(name for name in PRESETS if hasattr(settings, name))
    fields: dict[str, Any] = {
        "kind": (Literal[kind], ...),
        "name": (str | None, None),
    }
    if presets:
        fields["preset"] = (Literal[presets] | None, None)
    for field in dataclasses.fields(settings):
        needed = field.default is dataclasses.MISSING
        needed = needed and field.default_factory is dataclasses.MISSING
        kind_of: Any = field.type
        several = Annotated[kind_of, BeforeValidator(_listed(field.name))]
        fields[field.name] = (several, ... if needed else None)
    return create_model(settings.__name__, __base__=base, **fields)


def _listed(name: str) -> Any:
    """Take `layers: 1` for `layers: [1]`."""
    alone = name in ("layers", "recipients", "heads")
    return lambda value: [value] if alone and isinstance(value, int) else value
