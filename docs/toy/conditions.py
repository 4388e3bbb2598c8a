"""What the toys are measured under: no patch, EAH, every control, every layer."""

from typing import get_args

from eah_interp import EAH
from eah_interp._types import DonorRule

PLAIN = "plain"
DONORS: tuple[DonorRule, ...] = get_args(DonorRule)
"""The method ("densest") and its controls."""

CONTROLS = tuple(donor for donor in DONORS if donor != "densest")
PAIR = (0, 1)
RECIPIENTS = (2, 4, 6)
BETAS = (0.5, 1.5, 2.0)


def name_of(layers: tuple[int, ...], donor: str) -> str:
    """Name a condition: `L1 densest`, `L0+1 mean`."""
    return f"L{'+'.join(map(str, layers))} {donor}"


def list_conditions(n_layers: int) -> dict[str, EAH | None]:
    """List every condition by name; the first is the model as it is.

    Args:
        n_layers: Decoder layers of the toy.
    """
    conditions: dict[str, EAH | None] = {PLAIN: None}
    for layers in [(layer,) for layer in range(n_layers)] + [PAIR]:
        for donor in DONORS:
            conditions[name_of(layers, donor)] = EAH(layers=layers, donor=donor)
    conditions["L1 paper"] = EAH.paper()
    conditions["L0+1 paper"] = EAH.paper(layers=PAIR)
    for n in RECIPIENTS:
        settings = EAH(recipients=tuple(range(n)))
        conditions[f"L1 to {n} heads"] = settings
    for beta in BETAS:
        conditions[f"L1 beta {beta}"] = EAH(beta=beta)
    return conditions
