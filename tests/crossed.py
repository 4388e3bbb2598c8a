"""Every value of several axes in every run, their combinations in `make check-all`."""

import itertools
from collections.abc import Sequence

import pytest


def cross(*axes: Sequence[object]) -> list[object]:
    """List all combinations for `parametrize`; all but one for each value are slow.

    As many are fast as the longest axis has values, and every value of every axis is
    in one of them. For axes that hardly depend on each other, such as the kind of a
    result and its size.
    """
    longest = max(range(len(axes)), key=lambda axis: len(axes[axis]))
    found = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        step = places[longest]
        fast = all(
            place == step % len(axis) for axis, place in zip(axes, places, strict=True)
        )
        name = "-".join(getattr(one, "__name__", str(one)) for one in values)
        marks = [] if fast else [pytest.mark.slow]
        found.append(pytest.param(*values, id=name, marks=marks))
    return found
