"""Conditions of a study: a name, and what is done to the model."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eah_interp.arguments import Named, by_name, check_kind, check_mapping, check_text
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import to_list
from eah_interp.interventions import EAH, Intervention, edit
from eah_interp.interventions.donation import seed_items
from eah_interp.interventions.intervention import known_kinds, our_kinds
from eah_interp.kernels.sinks import DEFAULT_BETA
from eah_interp.plugins import describe_plugin, find_plugin
from eah_interp.studies.store import check_folders, check_name

OURS: dict[str, type[Intervention]] = our_kinds()
"""What this package does to a model, by its name in files."""


def list_kinds() -> dict[str, type[Intervention]]:
    """List what can be done to a model, by its name in files: ours, then a user's own.

    Example:
        >>> list(list_kinds())[:3]
        ['eah', 'ablation', 'ad_hh']
    """
    return {**OURS, **known_kinds(), **OURS}


@dataclass(frozen=True)
class Condition(metaclass=Named):
    """A name, and what is done to the model under it.

    Attributes:
        name: Its name in the results.
        patch: The intervention; None for the model as it is.
    """

    name: str
    patch: Intervention | None = None

    def __post_init__(self) -> None:
        check_text("a condition's name", self.name, error=SettingsError)
        check_patch("patch", self.patch)

    def to_dict(self) -> dict[str, Any]:
        """Write the condition as a mapping of plain values.

        An intervention of a user's own is named, with a hash of its source.

        Raises:
            SettingsError: If its source, or a donor function's, cannot be read.
        """
        if self.patch is None:
            return {"name": self.name}
        kind = type(self.patch)
        named = {"name": self.name, kind.kind: self.patch.to_dict()}
        if OURS.get(kind.kind) is not kind:
            named["code"] = describe_plugin(kind)
        return named

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Condition":
        """Make a condition from a mapping.

        Raises:
            SettingsError: If a setting is impossible, or a kind is unknown.

        Example:
            >>> from eah_interp.interventions import PAI
            >>> condition = Condition("PAI", PAI())
            >>> Condition.from_dict(condition.to_dict()) == condition
            True
        """
        values = check_mapping("a condition", values)
        found = list_kinds()
        code = values.get("code")
        if isinstance(code, Mapping):
            own = find_plugin(code)
            found[getattr(own, "kind", "")] = own
        kinds = [key for key in values if key not in ("name", "code")]
        if len(kinds) > 1 or set(kinds) - set(found):
            msg = (
                f"a condition is a name and one of {', '.join(found)}, or none, got "
                f"{', '.join(map(str, values))}"
            )
            raise SettingsError(msg)
        given = values[kinds[0]] if kinds else None
        if given is not None and not isinstance(given, Mapping):
            msg = (
                f"{kinds[0]} must be settings with their values, got "
                f"{show_value(given)}"
            )
            raise SettingsError(msg)
        patch = None if given is None else found[kinds[0]].from_dict(given)
        check_name(values.get("name"))
        return cls(values["name"], patch)

    def check(self, model: Any) -> None:
        """Check that it fits a model, before anything is run.

        Raises:
            SettingsError: If a layer or head does not exist.
            ModelError: If a layer has no heads.
        """
        if self.patch is not None:
            model.check(self.patch)

    def apply(self, model: Any, *, seeds: Sequence[int]) -> Any:
        """Make the patched twin for a batch.

        Args:
            model: The model as it is.
            seeds: A number for each item, so that what is drawn for it does not
                depend on its batch.
        """
        if self.patch is None:
            return model
        patch = self.patch
        if isinstance(patch, EAH):
            patch = seed_items(patch, list(seeds))
        return edit(model, patch)


def check_patch(name: str, value: object) -> None:
    """Check that an argument is an intervention's settings, or None.

    Raises:
        SettingsError: If it is something else.
    """
    check_kind(
        name,
        value,
        (Intervention, type(None)),
        expected="an intervention's settings, such as eah.EAH(), or None",
        error=SettingsError,
    )


BASELINE = Condition("baseline")

CONTROL_DONORS = ("sparsest", "random", "mean", "uniform", "shuffled")


@by_name
def control_conditions(eah: EAH | None = None) -> tuple[Condition, ...]:
    """List the baseline, a patch, and every control donor in its place.

    Args:
        eah: The patch; `EAH()` when None.

    Example:
        >>> [condition.name for condition in control_conditions()]
        ['baseline', 'EAH', 'sparsest', 'random', 'mean', 'uniform', 'shuffled']
    """
    check_kind(
        "eah", eah, (EAH, type(None)), expected="EAH settings", error=SettingsError
    )
    eah = EAH() if eah is None else eah
    controls = [
        Condition(donor, dataclasses.replace(eah, donor=donor))  # type: ignore[arg-type]
        for donor in CONTROL_DONORS
    ]
    return (BASELINE, Condition("EAH", eah), *controls)


@by_name
def sweep(
    axes: Mapping[str, Sequence[Any]],
    *,
    eah: Intervention | None = None,
    prefix: str | None = None,
) -> tuple[Condition, ...]:
    """Vary settings, every combination a condition.

    Args:
        axes: Values by setting.
        eah: The other settings: `EAH`, or another intervention; `EAH()` when None.
        prefix: How names begin; the intervention's name when None.

    Raises:
        SettingsError: If a setting is unknown or a value impossible.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> conditions = sweep({"layers": [(0,), (1,)], "beta": [1.0, 2.0]})
        >>> [condition.name for condition in conditions][:2]
        ['EAH layers=0 beta=1.0', 'EAH layers=0 beta=2.0']
        >>> [condition.name for condition in sweep({"alpha": [0.2, 0.5]}, eah=PAI())]
        ['PAI alpha=0.2', 'PAI alpha=0.5']
    """
    check_patch("eah", eah)
    for name, values in check_mapping("axes", axes).items():
        if to_list(values) is None:
            got = show_value(values)
            raise SettingsError(f"axes must have a list under {name!r}, got {got}")
    if prefix is not None:
        check_text("prefix", prefix, error=SettingsError)
    eah = EAH() if eah is None else eah
    kind = type(eah)
    prefix = kind.__name__ if prefix is None else prefix
    base = eah.to_dict()
    if isinstance(eah, EAH) and eah.beta == DEFAULT_BETA[eah.definition]:
        base.pop("beta")  # each definition has its own
    return tuple(
        Condition(name_changes(prefix, changes), kind.from_dict(base | changes))
        for changes in combine(axes)
    )


def combine(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of some settings' values.

    Example:
        >>> list(combine({"layers": [0, 1], "beta": [2.0]}))
        [{'layers': 0, 'beta': 2.0}, {'layers': 1, 'beta': 2.0}]
    """
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def name_changes(first: str, changes: Mapping[str, Any]) -> str:
    """Name a condition by the settings that were changed, in a sweep or a file.

    Args:
        first: How the name begins.
        changes: What was changed.

    Example:
        >>> name_changes("EAH", {"layers": (0, 1), "beta": 2.0})
        'EAH layers=0+1 beta=2.0'
    """
    return " ".join([first, *(f"{key}={_short(v)}" for key, v in changes.items())])


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value))
    return str(getattr(value, "__name__", value))


def check_conditions(conditions: Sequence[Condition]) -> None:
    """Check that there are conditions, each with a name, and a folder, of its own.

    Raises:
        SettingsError: If not.
    """
    listed = to_list(conditions)
    if listed is None or not all(isinstance(one, Condition) for one in listed):
        got = show_value(conditions)
        raise SettingsError(f"conditions must be a list of Conditions, got {got}")
    names = [condition.name for condition in listed]
    if not names:
        msg = "a study needs at least 1 condition, got none"
        raise SettingsError(msg)
    for name in names:
        check_name(name)
    twice = {name for name, count in Counter(names).items() if count > 1}
    if twice:
        msg = f"conditions called {', '.join(sorted(twice))} stand there more than once"
        raise SettingsError(msg)
    check_folders(names)


# ---- Conditions as a manifest lists them, in words.


def list_steps(conditions: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """List which steps each condition patches: `prefill`, `all`; None for nothing.

    Args:
        conditions: As a manifest lists them.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> list_steps([c.to_dict() for c in (BASELINE, Condition("PAI", PAI()))])
        {'baseline': None, 'PAI': 'all'}
    """
    return {
        str(one["name"]): None if kind is None else settings.get("steps")
        for one in conditions
        for kind, settings in [_find_patch(one)]
    }


def describe_patch(condition: Mapping[str, Any]) -> tuple[str, str]:
    """Name what a condition does to the model, and its settings but for the steps.

    Args:
        condition: As a manifest lists it.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> describe_patch(Condition("more", PAI(alpha=0.5)).to_dict())
        ('PAI', 'alpha=0.5, layers=2:')
        >>> describe_patch(BASELINE.to_dict())
        ('nothing', '')
    """
    kind, settings = _find_patch(condition)
    if kind is None:
        return "nothing", ""
    known = list_kinds().get(kind)
    name = kind if known is None else known.__name__
    told = [
        f"{key}={_write_setting(value)}"
        for key, value in settings.items()
        if key != "steps"
    ]
    return name, ", ".join(told)


def _find_patch(condition: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    for key, value in condition.items():
        if key not in ("name", "code") and isinstance(value, Mapping):
            return key, value
    return None, {}


def _write_setting(value: Any) -> str:
    if isinstance(value, Mapping):  # a function, by its name and its source's hash
        return str(value.get("plugin", "a function"))
    if isinstance(value, list | tuple):
        return "+".join(map(_write_setting, value))
    return "none" if value is None else str(value)


# ---- Conditions that differ in one setting: what a sweep varied.


class PatchedConditions:
    """Conditions of EAH, found by their settings.

    Args:
        conditions: As a manifest lists them; those of other patches are passed over.

    Example:
        >>> from eah_interp.studies.conditions import control_conditions
        >>> listed = [c.to_dict() for c in control_conditions()[:3]]
        >>> found = PatchedConditions(listed)
        >>> found.first(donor="densest"), found.varied("EAH", "donor")
        ('EAH', {'sparsest': 'sparsest'})
    """

    def __init__(self, conditions: Sequence[Mapping[str, Any]]) -> None:
        self.settings = {
            str(c["name"]): c["eah"] for c in conditions if c.get("eah") is not None
        }

    def first(self, **wanted: Any) -> str | None:
        """Find the first condition with some settings."""
        for name, eah in self.settings.items():
            if all(eah.get(key) == value for key, value in wanted.items()):
                return name
        return None

    def varied(self, name: str, key: str) -> dict[str, Any]:
        """List conditions that differ from one in a single setting, by its value."""
        own = {k: v for k, v in self.settings[name].items() if k != key}
        return {
            other: eah[key]
            for other, eah in self.settings.items()
            if eah[key] != self.settings[name][key]
            and {k: v for k, v in eah.items() if k != key} == own
        }
