"""A causal ablation study: items x conditions, run once, believed afterwards."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd

from eah_interp.arguments import (
    Named,
    by_name,
    check_flag,
    check_mapping,
    check_path,
)
from eah_interp.errors import (
    EAHError,
    InputError,
    SettingsError,
    UnsupportedError,
    show_value,
)
from eah_interp.files import make_folder
from eah_interp.indices import check_choice, check_integer, to_float, to_int, to_list
from eah_interp.lvlm.anatomy import name_model
from eah_interp.results import Result
from eah_interp.studies.conditions import (
    Condition,
    check_conditions,
    describe_patch,
    list_steps,
)
from eah_interp.studies.items import Item, check_items
from eah_interp.studies.manifest import Manifest, ModelSource, load_items
from eah_interp.studies.runner import Shard, list_work, run_local
from eah_interp.studies.store import Store
from eah_interp.studies.work import split_batches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Engine = Literal["local", "ray"]


@dataclass
class Study(metaclass=Named):
    """Items, conditions and everything else that a result depends on.

    Attributes:
        model: An LVLM.
        items: What is asked.
        conditions: What is done to the model.
        decoding: Arguments of `generate`, by task; added to `DECODING`.
        batch_size: Items in a forward pass.
        sinks: Whether every item's sink densities are kept too.
        seed: Of answers that are sampled, if decoding samples any.
        source: Where the model came from, for Ray workers; without it they are sent
            its weights.

    Raises:
        InputError: If there are no items, or two of one name.
        SettingsError: If there are no conditions, or one does not fit the model, or
            `generate` does not take the decoding, or the model is a twin of `edit`.

    Example:
        >>> import tempfile
        >>> import eah_interp as eah
        >>> from eah_interp.studies import control_conditions, toy_items
        >>> items = toy_items(2, captions=False, samplings=("random",))
        >>> study = Study(eah.load(), items, control_conditions()[:2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = study.run(folder, progress=False).frame()
        >>> rows.condition.value_counts().tolist()
        [4, 4]
    """

    model: Any
    items: Sequence[Item]
    conditions: Sequence[Condition]
    decoding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch_size: int = 32
    sinks: bool = False
    seed: int = 0
    source: ModelSource | None = None

    def __repr__(self) -> str:
        """Write what is asked and done in a line; the model by its name."""
        names = ", ".join(one.name for one in self.conditions[:6])
        more = ", ..." if len(self.conditions) > 6 else ""
        return (
            f"Study({name_model(self.model)}, {len(self.items)} items, "
            f"{len(self.conditions)} conditions: {names}{more})"
        )

    def __post_init__(self) -> None:
        check_items(self.items)
        check_conditions(self.conditions)
        carried = getattr(self.model, "patches", ())
        if carried:
            msg = (
                "a study patches the model by its conditions, and this one is patched "
                f"already, in the baseline too, by {', '.join(map(str, carried))}: "
                "pass the plain model, and the patch as a condition"
            )
            raise SettingsError(msg)
        for condition in self.conditions:
            condition.check(self.model)
        number = to_int(self.batch_size)
        if number is None or number < 1:
            msg = f"batch_size must be at least 1, got {show_value(self.batch_size)}"
            raise SettingsError(msg)
        seed = check_integer("seed", self.seed)
        object.__setattr__(self, "sinks", check_flag("sinks", self.sinks))
        if self.source is not None and not isinstance(self.source, ModelSource):
            got = show_value(self.source)
            raise SettingsError(f"source must be a ModelSource or None, got {got}")
        # A frozen dataclass: integers of NumPy become plain ones, as JSON wants them.
        object.__setattr__(self, "batch_size", number)
        object.__setattr__(self, "seed", seed)
        check_decoding(self.model, self.settings)
        for condition in self.conditions:
            self._check_condition(condition)

    def _check_condition(self, condition: Condition) -> None:
        """Check that what a condition changes beside the model can be changed.

        Raises:
            SettingsError: If it acts on no item, or `generate` does not take its
                decoding.
        """
        asked = {item.task for item in self.items}
        if condition.tasks and not asked & set(condition.tasks):
            msg = (
                f"condition {condition.name!r} changes answers of "
                f"{', '.join(condition.tasks)} alone, and the study has items of "
                f"{', '.join(sorted(asked))}: expected one that acts on some; leave it "
                "out (control_conditions takes tasks=...)"
            )
            raise SettingsError(msg)
        own = condition.decoding
        try:
            complete_decoding(own)
            check_decoding(self.model, _merge(self.settings, own))
        except SettingsError as error:
            msg = f"condition {condition.name!r}: {error}"
            raise SettingsError(msg) from error

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Arguments of `generate`, by task."""
        return complete_decoding(self.decoding, tasks=[i.task for i in self.items])

    @by_name
    def run(
        self,
        folder: str | Path,
        *,
        engine: Engine = "local",
        shard: str = "1/1",
        address: str | None = None,
        workers: int | None = None,
        retry_failed: bool = False,
        trust_images: bool = False,
        progress: bool = True,
    ) -> "StudyRun":
        """Run what is not in the folder yet.

        Every batch under every condition is a file of its own, written whole. Killed
        at any moment and started again, the run ends with the same rows.

        Args:
            folder: Where rows go; a study's own.
            engine: `"local"`, in this process; or `"ray"`, on workers that each hold
                a model.
            shard: `"2/8"`: only every eighth batch, for jobs that share a folder.
            address: Ray's cluster; this machine when None.
            workers: Ray workers; one for each GPU, or two without.
            retry_failed: Whether batches with a failed item are run again, every
                item of them.
            trust_images: Whether to go on in a folder from before images were hashed.
                That its images are still the same is then yours to know.
            progress: Whether to show a bar.

        Returns:
            The run, with what is there of it.

        Raises:
            SettingsError: If the folder holds another study, or cannot be written; if
                an image was replaced since it was begun.
            KeyboardInterrupt: After the running batch, if Ctrl-C was pressed.
            ExtraMissingError: If pyarrow, or ray, is not installed.
        """
        folder = check_path("folder", folder, error=SettingsError)
        share = Shard.parse(shard)
        retry_failed = check_flag("retry_failed", retry_failed)
        trust_images = check_flag("trust_images", trust_images)
        progress = check_flag("progress", progress)
        manifest = Manifest.of(
            self.model,
            self.items,
            self.conditions,
            decoding=self.settings,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        check_choice("engine", engine, Engine)
        store = Store(folder)
        make_folder(folder)
        manifest.save(folder, self.items, trust_images=trust_images)
        store.prepare([condition.name for condition in self.conditions])
        batches = split_batches(self.items, self.batch_size)
        if retry_failed:
            store.forget_failed(
                [c.name for c in self.conditions],
                [batch.number for batch in batches if share.has(batch)],
            )
        work = list_work(store, batches, self.conditions, shard=share, sinks=self.sinks)
        options: dict[str, Any] = {
            "decoding": self.settings,
            "seed": self.seed,
            "progress": progress,
        }
        if engine == "local":
            run_local(self.model, store, work, **options)
        else:
            from eah_interp.studies.engine_ray import run_ray

            run_ray(
                self.model,
                store,
                work,
                source=self.source,
                manifest=manifest,
                address=address,
                workers=workers,
                **options,
            )
        return StudyRun(folder)


@dataclass(frozen=True, eq=False, repr=False)
class StudyRun(Result):
    """A study's folder: its manifest, its items and its rows.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    @classmethod
    def load(cls, path: str | Path) -> "StudyRun":
        """Open a study's folder.

        Raises:
            InputError: If it is none.
        """
        run = cls(check_path("path", path))
        _ = run.manifest
        return run

    @overload
    def save(self) -> "StudyRun": ...

    @overload
    def save(self, path: str | Path) -> Path: ...

    def save(self, path: str | Path | None = None) -> Any:
        """Copy the study's folder: `StudyRun.load` opens the copy, and it can go on.

        Args:
            path: A folder that is not there, or empty.

        Returns:
            The folder.

        Raises:
            SettingsError: If none is given, it holds something, or cannot be written.
        """
        if path is None:
            return super().save()
        folder = check_path("path", path, error=SettingsError)
        make_folder(folder)
        if any(folder.iterdir()):
            msg = f"{folder} is not empty: expected a new folder for the study's copy"
            raise SettingsError(msg)
        try:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        except OSError as error:  # shutil.Error is one
            raise SettingsError(f"cannot copy {self.folder}: {error}") from error
        return folder

    def _about(self) -> str:
        try:
            manifest = self.manifest
        except EAHError:
            return f"{self.folder}, which holds no study now"
        return (
            f"{self.folder}, of {manifest.model}, {manifest.n_items} items under "
            f"{len(manifest.conditions)} conditions"
        )

    def _first(self, k: int) -> pd.DataFrame:
        chosen = self.manifest.conditions[:k]
        steps = list_steps(chosen)
        listed = []
        for one in chosen:
            name = str(one["name"])
            kind, settings = describe_patch(one)
            done = {"what": kind, "steps": steps[name] or "", "settings": settings}
            listed.append({"condition": name} | done)
        return pd.DataFrame(listed)

    def _picture(self) -> None:
        """Draw nothing: it would read every row of the study."""

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw how many items each condition has answered, in percent.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            InputError: If a file cannot be read.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        rows = self.rows()
        answered = rows[rows["error"].isna()].groupby("condition").size()
        shares = [
            100 * int(answered.get(name, 0)) / self.manifest.n_items
            for name in self.conditions
        ]
        return plot_bars(
            list(self.conditions),
            {"plain": shares},
            title=f"{self.manifest.n_items} items",
            axis="answered (%)",
            ax=ax,
        )

    @property
    def manifest(self) -> Manifest:
        """What the study fixes."""
        return Manifest.load(self.folder)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(str(c["name"]) for c in self.manifest.conditions)

    def items(self) -> pd.DataFrame:
        """List the items, by `item`."""
        items = load_items(self.folder, self.manifest)
        listed = [
            {k: v for k, v in item.to_dict().items() if k != "columns"}
            | {"prompt": item.prompt_text, **item.columns}
            for item in items
        ]
        return pd.DataFrame(listed).rename(columns={"id": "item"})

    def rows(self) -> pd.DataFrame:
        """List the rows that are there, each once, without their items.

        `steps` says of each which steps its condition patches: `prefill`, `all`, or
        nothing where the model is as it is.

        Raises:
            InputError: If a file cannot be read, was copied, or is of another study.
        """
        found = Store(self.folder).read(self.conditions)
        strange = sorted(set(found["item"]) - set(self.items()["item"]))
        if strange:
            msg = (
                f"{self.folder} has rows of items that the study does not have, such "
                f"as {strange[0]!r}: expected its own; delete the files that were "
                "copied there"
            )
            raise InputError(msg)
        steps = list_steps(self.manifest.conditions)
        place = list(found.columns).index("condition") + 1
        found.insert(place, "steps", found["condition"].map(steps).astype(object))
        return found

    def frame(self) -> pd.DataFrame:
        """List every row with its item: answers, errors, labels, truth.

        Raises:
            InputError: If a file cannot be read.
        """
        rows = self.rows()
        return rows.merge(self.items(), on="item", how="left", validate="many_to_one")

    def sinks(self) -> pd.DataFrame:
        """List sink densities by item, layer and head; empty if none were kept."""
        return Store(self.folder).read_sinks()

    @property
    def is_complete(self) -> bool:
        """Whether every item has a row under every condition."""
        # Each row is of one item and condition: so many of them are all of them.
        return len(self.rows()) == self.manifest.n_items * len(self.conditions)

    def check_complete(self) -> None:
        """Refuse to sum up a part of a study as if it were all of it.

        Raises:
            UnsupportedError: If rows are missing; it says how many.
        """
        found = len(self.rows())
        wanted = self.manifest.n_items * len(self.conditions)
        if found != wanted:
            msg = (
                f"{self.folder} has {found} of {wanted} rows: run the study to its "
                "end, or pass partial=True to sum up what is there"
            )
            raise UnsupportedError(msg)


# ---- How answers are decoded, checked before anything is run.


DECODING: dict[str, dict[str, Any]] = {
    "yes_no": {"max_new_tokens": 8, "do_sample": False},
    "caption": {"max_new_tokens": 64, "do_sample": False},
}
"""How answers are decoded unless a study says otherwise: greedily."""

CHOICE = {"choice": {"max_new_tokens": 16, "do_sample": False}}
"""The same of choices: a manifest has it where a study has some, and older ones not."""

ONE_ANSWER = {"num_return_sequences", "return_dict_in_generate"}

CODE = {"custom_generate", "trust_remote_code"}
"""What would have `generate` run a folder's code: no study file may say that."""


def complete_decoding(
    decoding: Mapping[str, Mapping[str, Any]], *, tasks: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Add a study's settings to the defaults.

    Args:
        decoding: Arguments of `generate`, by task.
        tasks: Of the study's items; choices are decoded only where there are some.

    Returns:
        Arguments by task, defaults included.

    Raises:
        SettingsError: If a task is unknown.

    Example:
        >>> complete_decoding({"caption": {"num_beams": 5}})["caption"]
        {'max_new_tokens': 64, 'do_sample': False, 'num_beams': 5}
    """
    decoding = {
        task: {
            name: _make_plain(value, name=f"decoding of {task}: {name}")
            for name, value in check_mapping(f"decoding of {task}", settings).items()
        }
        for task, settings in check_mapping("decoding", decoding).items()
    }
    defaults = {**DECODING, **(CHOICE if "choice" in {*tasks, *decoding} else {})}
    unknown = set(decoding) - set(defaults)
    if unknown:
        msg = f"decoding is given by task: expected {', '.join(DECODING)}, got "
        raise SettingsError(msg + ", ".join(sorted(unknown)))
    return {
        task: {**settings, **decoding.get(task, {})}
        for task, settings in defaults.items()
    }


def _merge(
    decoding: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Put a condition's decoding before a study's, of the tasks that it has."""
    return {
        task: {**given, **own[task]} for task, given in decoding.items() if task in own
    }


def _make_plain(value: object, *, name: str) -> Any:
    """Make a setting what a manifest holds: a number, a text, or a list of them.

    Raises:
        SettingsError: If it is something else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    whole, number = to_int(value), to_float(value)
    if whole is not None and abs(whole) < 2**63:
        return whole
    if whole is None and number is not None:
        return number
    listed = to_list(value)
    if listed is None:
        kind = "finite" if isinstance(value, float) else "a number, a text or a list"
        raise SettingsError(f"{name} must be {kind}, got {show_value(value)}")
    return [_make_plain(one, name=name) for one in listed]


def check_decoding(model: Any, decoding: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that `generate` takes these settings: a wrong one would fail every item.

    Args:
        model: An LVLM.
        decoding: Arguments of `generate`, by task.

    Raises:
        SettingsError: If one is unknown or impossible.
    """
    config = model._module.generation_config
    known = set(config.to_dict()) | set(vars(config))
    for task, settings in decoding.items():
        # A checkpoint's own file may hold any key, and so make it known.
        refused = ONE_ANSWER | CODE
        unknown = sorted(map(str, {*settings} - known | {*settings} & refused))
        if unknown:
            msg = (
                f"decoding of {task}: expected settings of transformers' generate that "
                f"give one answer (max_new_tokens, num_beams, ...), got "
                f"{', '.join(unknown)}"
            )
            raise SettingsError(msg)
        try:
            type(config)(**settings).validate()
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            msg = f"decoding of {task} is impossible: {reason}"
            raise SettingsError(msg) from error
