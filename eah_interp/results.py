"""What every result can do: be looked at, compared, copied, saved and loaded.

Methods import what they need when they are called: some results are made on servers
that have neither this package's files nor pandas (`eah_interp.lvlm.remote`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from eah_interp.kinds import register

if TYPE_CHECKING:
    import pandas as pd

Kind = TypeVar("Kind", bound="Result")


@register
class Part:
    """A labelled piece of a result: shown in a few lines, compared by what it holds.

    Every child is a frozen dataclass that makes no `repr` and no `==` of its own:
    `@dataclass(frozen=True, eq=False, repr=False)`.
    """

    def __repr__(self) -> str:
        """Write what it is in a few lines, however much it holds."""
        try:
            from eah_interp.shown_results import write_lines
        except ImportError:  # on a server
            return f"{type(self).__name__}(...)"
        return write_lines(self)

    def _repr_html_(self) -> str:
        """Show it in a notebook: a small table, and a picture where there is one."""
        from eah_interp.shown_results import write_html

        return write_html(self)

    def __eq__(self, other: object) -> bool:
        """Tell whether another result holds the same; NaN is the same as NaN.

        Tensors are compared to the bit, with their dtypes, wherever they lie.
        """
        if type(other) is not type(self):
            return NotImplemented
        from eah_interp.shown_results import are_same

        return are_same(self, other)

    def __hash__(self) -> int:
        """Hash what equal results share: the class, and the shapes of tensors."""
        shapes = [getattr(value, "shape", None) for value in vars(self).values()]
        return hash((type(self).__name__, *map(str, shapes)))

    def _about(self) -> str:
        """Describe in a line what it holds; what its fields are by default."""
        from eah_interp.shown_results import list_fields

        return list_fields(self)

    def _settings(self) -> Mapping[str, Any]:
        """Name the settings of what was done to the model."""
        names = ("eah", "settings", "patch", "source_patch", "target_patch")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def _first(self, k: int) -> "pd.DataFrame | None":
        """List the rows that are looked at first, without listing all of them."""
        del k
        return None

    def _picture(self) -> Any:
        """Draw what a notebook shows beside the table; None where there is nothing."""
        return None


class Result(Part):
    """A frozen, labelled result that can be tabulated, drawn, saved and loaded.

    Every child is a frozen dataclass of tensors, labels and settings, and has a
    `frame()` and a `plot()`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have a child's methods read their arguments as functions here do."""
        del kwargs
        # No super(): on a server a class is made before its methods have their cells.
        try:
            from eah_interp.arguments import methods_by_name
        except ImportError:  # on a server, where they travel as they are
            return
        methods_by_name(cls)

    def frame(self) -> "pd.DataFrame":
        """List the result, one row for each number that it is about."""
        raise NotImplementedError

    def plot(self, *args: Any, **options: Any) -> Any:
        """Draw the result; a matplotlib figure."""
        raise NotImplementedError

    @overload
    def save(self: Kind) -> Kind: ...

    @overload
    def save(self, path: str | Path) -> Path: ...

    def save(self, path: str | Path | None = None) -> Any:
        """Write the result to a folder; inside a trace, without one, keep it.

        The folder holds `frame.parquet` to read anywhere, and what `load` needs. It is
        made if it is not there; what an earlier result left in it is replaced, each
        file at once. Nothing that is loaded again is code.

        Args:
            path: A folder. Inside a `with model.trace(...):` it may be left out: as for
                every value there, `save()` then hands the result back after the trace.

        Returns:
            The folder; without one, the result itself.

        Raises:
            SettingsError: If the folder is left out outside a trace, it or a file
                cannot be written, or the result holds code of a user's own whose source
                cannot be read.
            ExtraMissingError: If pyarrow is not installed.
        """
        if path is None:
            import nnsight  # noqa: TID251 - values are kept by its mark

            try:
                return nnsight.save(self)
            except ValueError:  # outside a trace
                from eah_interp.saved_results import refuse_no_path

                raise refuse_no_path(self) from None
        from eah_interp.saved_results import save_result

        return save_result(self, path)

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Load what `save` wrote.

        Args:
            path: The folder.

        Raises:
            InputError: If the folder holds no such result, or one that does not add up.
            SettingsError: If the result holds code of a user's own that was not
                imported, or is another one now.
            ExtraMissingError: If pyarrow is not installed.
        """
        from eah_interp.saved_results import load_result

        loaded: Kind = load_result(cls, path)
        return loaded

    def _first(self, k: int) -> "pd.DataFrame | None":
        """List the rows that are looked at first, without listing all of them."""
        return self.frame().head(k)

    def _picture(self) -> Any:
        """Draw what a notebook shows beside the table; None where there is nothing."""
        return self.plot()


@dataclass(frozen=True, eq=False, repr=False)
class ModelResult(Result):
    """A result of runs of a model.

    Attributes:
        model: The model's name: its class, and where it was loaded from. Empty in
            results that were saved before it was kept.
    """

    model: str = field(default="", kw_only=True)
