"""Settings, donors and conditions in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from eah_interp.interventions import EAH
from eah_interp.report.inspection import Caption
from eah_interp.report.reading import PATCHED, PLAIN


def say_settings(eah: EAH) -> str:
    """Say EAH's settings in a line.

    Example:
        >>> say_settings(EAH())
        'EAH: layer 1, densest donor to all heads, definition visible, beta 1, prefill'
    """
    layers = ", ".join(map(str, eah.layers))
    plural = "s" if len(eah.layers) > 1 else ""
    donor = f"head {eah.donor}" if isinstance(eah.donor, int) else eah.donor
    heads = "all" if eah.recipients == "all" else ", ".join(map(str, eah.recipients))
    gamma = "" if eah.gamma is None else f", gamma {eah.gamma:g}"
    return (
        f"EAH: layer{plural} {layers}, {donor} donor to {heads} heads, definition "
        f"{eah.definition}, beta {eah.beta:g}{gamma}, {eah.steps}"
    )


def say_donors(donors: Iterable[Mapping[str, Any]]) -> str:
    """Say who donated in each layer, and how dense in sinks they were, if it is known.

    Example:
        >>> say_donors([{"layer": 1, "name": "L1H3", "density": 0.42, "patched": True}])
        'L1H3 (42%)'
    """
    said = []
    for one in donors:
        density = "" if one["density"] is None else f" ({one['density']:.0%})"
        said.append(say_donor(one) + density)
    return ", ".join(said)


def say_donor(donor: Mapping[str, Any]) -> str:
    """Name the donor of a layer, or say that nobody donated."""
    if donor["name"] is not None:
        return str(donor["name"])
    what = "no head" if donor["patched"] else "unpatched"
    return f"L{donor['layer']}: {what}"


def say_condition(name: str) -> str:
    """Name a condition as a reader would."""
    return {PLAIN: "without EAH", PATCHED: "with EAH"}.get(name, name)


def say_same_token(caption: Caption) -> str:
    """Warn of objects whose names begin with one token."""
    by_token: dict[str, list[str]] = {}
    for one in caption.objects:
        by_token.setdefault(one.token, []).append(one.object)
    shared = [" and ".join(names) for names in by_token.values() if len(names) > 1]
    if not shared:
        return ""
    return f" These names begin with one token, hence one logit: {'; '.join(shared)}."
