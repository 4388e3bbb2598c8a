"""Conditions that differ in one setting: what a sweep varied."""

from collections.abc import Mapping, Sequence
from typing import Any


class PatchedConditions:
    """Conditions of EAH, found by their settings.

    Args:
        conditions: As a manifest lists them; those of other patches are passed over.

    Example:
        >>> from eah_interp.studies.plan.conditions import control_conditions
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
