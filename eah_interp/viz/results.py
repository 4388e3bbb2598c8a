"""Functions that are given a result, and have it draw itself.

A result knows its numbers and how to lay them out as arrays; the rest of this folder
draws arrays. So each function here is a method of the result by another name, and takes
that method's options.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eah_interp.arguments import by_name
from eah_interp.errors import InputError, show_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eah_interp.lvlm.images import ImageLike
    from eah_interp.viz.circuits import GroupedPatterns
    from eah_interp.viz.widgets import Widget


@runtime_checkable
class Plotted(Protocol):
    """A result that draws itself: `SinkMap`, `BroadcastScores`, `HeadPatterns`."""

    def plot(self, *args: Any, **options: Any) -> "Figure":
        """Draw the result."""


@runtime_checkable
class Patterns(Protocol):
    """Rows of patterns, to click through: `HeadPatterns`."""

    def group(self, **options: Any) -> "GroupedPatterns":
        """Put an image's tokens together."""

    def show(self, **options: Any) -> "Widget":
        """Show whole patterns."""

    def show_tokens(self, **options: Any) -> "Widget":
        """Show what one row of each head attends to."""


@runtime_checkable
class Effects(Protocol):
    """Effects on several targets: `HeadAttribution`."""

    def plot_targets(self) -> "Figure":
        """Draw a line of panels for each target."""

    def plot_top(self, target: int = 0, **options: Any) -> "Figure":
        """Draw the components with the largest effects."""


@by_name
def plot_sink_map(found: Plotted, **options: Any) -> "Figure":
    """Draw sink density by layer and head: `SinkMap.plot`."""
    _check(found, "plot")
    return found.plot(**options)


@by_name
def plot_donors(found: Plotted, **options: Any) -> "Figure":
    """Draw one layer's heads, plain beside patched: `BroadcastScores.plot`."""
    _check(found, "plot")
    return found.plot(**options)


@by_name
def plot_attention(found: Plotted, image: "ImageLike", **options: Any) -> "Figure":
    """Draw what heads attend to on the image: `HeadPatterns.plot`."""
    _check(found, "plot")
    return found.plot(image, **options)


@by_name
def plot_targets(found: Effects) -> "Figure":
    """Draw effects of heads on every target: `HeadAttribution.plot_targets`."""
    _check(found, "plot_targets")
    return found.plot_targets()


@by_name
def plot_top(found: Effects, target: int = 0, **options: Any) -> "Figure":
    """Draw the components with the largest effects: `HeadAttribution.plot_top`."""
    _check(found, "plot_top")
    return found.plot_top(target, **options)


@by_name
def group_patterns(found: Patterns, **options: Any) -> "GroupedPatterns":
    """Put an image's tokens together: `HeadPatterns.group`."""
    _check(found, "group")
    return found.group(**options)


@by_name
def show_attention(found: Patterns, **options: Any) -> "Widget":
    """Show whole patterns, to click through: `HeadPatterns.show`."""
    _check(found, "show")
    return found.show(**options)


@by_name
def show_tokens(found: Patterns, **options: Any) -> "Widget":
    """Show what one row of each head attends to: `HeadPatterns.show_tokens`."""
    _check(found, "show_tokens")
    return found.show_tokens(**options)


def _check(found: object, method: str) -> None:
    """Check that a result can be drawn this way: those that can say so themselves."""
    if not callable(getattr(found, method, None)):
        got = show_value(found)
        msg = f"expected a result that has {method}(), such as read_patterns gives, "
        raise InputError(f"{msg}got {got}")
