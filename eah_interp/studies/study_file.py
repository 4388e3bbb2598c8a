"""A study written in a file: read, checked to the line, and made into a study.

`StudyFile` is what a file states. Below it are the pydantic models that say what may
stand in one, and how an entry of its conditions becomes conditions.
"""

import dataclasses
import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from eah_interp.arguments import check_path
from eah_interp.benchmarks.metrics import Task
from eah_interp.errors import EAHError, ExtraMissingError, SettingsError, show_value
from eah_interp.interventions.intervention import Intervention
from eah_interp.plugins import find_plugin
from eah_interp.results import Part
from eah_interp.studies.benchmark_items import (
    amber_items,
    hallusionbench_items,
    mme_items,
    mmvp_items,
)
from eah_interp.studies.conditions import (
    NEAR_TIE,
    PLAIN,
    YES_BIASED,
    Condition,
    check_conditions,
    combine,
    control_conditions,
    list_kinds,
    name_changes,
    name_tower,
)
from eah_interp.studies.items import (
    Item,
    caption_items,
    check_items,
    pope_items,
    toy_items,
)
from eah_interp.studies.manifest import ModelSource
from eah_interp.studies.nulls import NearTie
from eah_interp.studies.own_data import table_items
from eah_interp.studies.store import check_name
from eah_interp.studies.study import Study, complete_decoding
from eah_interp.studies.work import Batch, split_batches
from eah_interp.studies.yaml_file import YamlFile, explain, locate, prefix


@dataclass(frozen=True, eq=False, repr=False)
class StudyFile(Part):
    """A study as its file states it.

    Attributes:
        path: The file.
        source: Where the model comes from.
        items: What is asked.
        conditions: What is done to the model.
        decoding: Arguments of `generate`, by task, defaults included.
        batch_size: Items in a forward pass.
        sinks: Whether sink densities are kept.
        seed: Of what is drawn: control donors without a seed, sampled answers.
    """

    path: Path
    source: ModelSource
    items: tuple[Item, ...]
    conditions: tuple[Condition, ...]
    decoding: Mapping[str, Mapping[str, Any]]
    batch_size: int
    sinks: bool
    seed: int

    def _about(self) -> str:
        names = ", ".join(one.name for one in self.conditions[:6])
        more = ", ..." if len(self.conditions) > 6 else ""
        return (
            f"{self.path}, model {self.source.name}, {len(self.items)} items, "
            f"{len(self.conditions)} conditions ({names}{more})"
        )

    @classmethod
    def load(cls, path: str | Path) -> "StudyFile":
        """Read a study file.

        Args:
            path: A YAML file; the page "Studies" in the docs explains its keys.

        Returns:
            The study; no model is loaded yet.

        Raises:
            SettingsError: If a key is unknown or a value impossible; each with file,
                line, key, what was expected and what was there.
            InputError: If the file, or the items that it names, cannot be read.
            ExtraMissingError: If pydantic or PyYAML is not installed.

        Example:
            >>> import tempfile
            >>> with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            ...     _ = file.write("{items: {source: toy, n_scenes: 2},")
            ...     _ = file.write("conditions: [baseline, eah]}")
            ...     file.flush()
            ...     study = StudyFile.load(file.name)
            >>> len(study.items), [condition.name for condition in study.conditions]
            (14, ['baseline', 'EAH'])
        """
        path = check_path("path", path)
        file = YamlFile.read(path)
        values = _with_list(file.values)
        checked = _check(file, values)
        conditions = _read_conditions(file, values["conditions"], seed=checked.seed)
        items: list[Item] = []
        for entry in checked.items:
            items += _list_items(entry.model_dump(), folder=file.path.parent)
        check_items(items)
        asked = {item.task for item in items}
        return cls(
            path=file.path,
            source=ModelSource(**checked.model.model_dump()),
            items=tuple(items),
            conditions=tuple(
                one
                for one in conditions
                if _is_listed(one, checked.conditions) or _acts(one, asked)
            ),
            decoding=complete_decoding(
                checked.decoding.model_dump(exclude_unset=True),
                tasks=[item.task for item in items],
            ),
            batch_size=checked.batch_size,
            sinks=checked.sinks,
            seed=checked.seed,
        )

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Items by the forward pass that they share."""
        return split_batches(self.items, self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Describe what would run, as JSON can hold it."""
        return {
            "model": asdict(self.source),
            "n_items": len(self.items),
            "tasks": dict(Counter(item.task for item in self.items)),
            "n_batches": len(self.batches),
            "batch_size": self.batch_size,
            "conditions": [condition.to_dict() for condition in self.conditions],
            "n_rows": len(self.items) * len(self.conditions),
            "decoding": self.decoding,
            "sinks": self.sinks,
            "seed": self.seed,
        }

    def study(self, model: Any = None) -> Study:
        """Load the model and make the study.

        Args:
            model: Another model in its place.

        Raises:
            SettingsError: If a condition does not fit the model, or `generate` does
                not take the decoding.
            ModelError: If the model cannot be loaded, or worked on.
        """
        return Study(
            self.source.load() if model is None else model,
            self.items,
            self.conditions,
            decoding=self.decoding,
            batch_size=self.batch_size,
            sinks=self.sinks,
            seed=self.seed,
            source=self.source if model is None else None,
        )


def _is_listed(condition: Condition, entries: list[Any]) -> bool:
    """Tell whether a file names a condition itself."""
    return any(PLAIN.get(entry) == condition for entry in entries if _is_name(entry))


def _is_name(entry: object) -> bool:
    return isinstance(entry, str)


def _acts(condition: Condition, asked: set[Task]) -> bool:
    """Tell whether a null that controls brought acts on some item."""
    return condition not in (YES_BIASED, NEAR_TIE) or bool(asked & set(condition.tasks))


def _with_list(values: Any) -> Any:
    """Take `items:` with one source for a list of one."""
    if isinstance(values, dict) and isinstance(values.get("items"), dict):
        return {**values, "items": [values["items"]]}
    return values


def _check(file: YamlFile, values: Any) -> Any:
    schema = make_study_schema()
    from pydantic import ValidationError

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(explain(file, error, ()))) from error


def _read_conditions(
    file: YamlFile, entries: list[Any], *, seed: int
) -> tuple[Condition, ...]:
    from pydantic import ValidationError

    found: list[Condition] = []
    wrong: list[str] = []
    for number, entry in enumerate(entries):
        place = ("conditions", number)
        try:
            several = read_condition(entry, seed=seed)
            for condition in several:
                check_name(condition.name)
        except ValidationError as error:
            wrong += explain(file, error, place)
        except ValueError as error:  # also our own SettingsError
            wrong.append(locate(file, place, entry, str(error)))
        else:  # controls bring a baseline and others, which may stand there already
            shared = several if len(several) > 1 else tuple(PLAIN.values())
            found += [one for one in several if one not in found or one not in shared]
    if wrong:
        raise SettingsError("; ".join(wrong))
    try:
        check_conditions(found)
    except SettingsError as error:
        where = prefix(file, ["conditions"])
        msg = f"{where}{error}; give them a name of their own"
        raise SettingsError(msg) from error
    return tuple(found)


BENCHMARKS: dict[str, Callable[..., tuple[Item, ...]]] = {
    "mme": mme_items,
    "hallusionbench": hallusionbench_items,
    "mmvp": mmvp_items,
}
"""Sources of items that are a file of questions and a folder of images."""


def _list_items(entry: dict[str, Any], *, folder: Path) -> tuple[Item, ...]:
    source = entry.pop("source")
    kinds = ("questions", "queries", "annotations", "images", "file", "download")
    paths = [key for key in kinds if source != "toy" and entry.get(key) is not None]
    for key in paths:
        given = entry[key]
        entry[key] = (
            [folder / one for one in given]
            if isinstance(given, list)
            else folder / given
        )
    try:
        if source == "toy":
            return toy_items(entry.pop("n_scenes"), **entry)
        if source == "pope":
            return pope_items(entry.pop("questions"), entry.pop("images"), **entry)
        if source == "amber":
            names = ("queries", "annotations", "images")
            paths_of = [entry.pop(name) for name in names]
            return amber_items(*paths_of, **entry)
        if source in BENCHMARKS:
            items_of = BENCHMARKS[source]
            return items_of(entry.pop("questions"), entry.pop("images"), **entry)
        if source == "table":
            return table_items(entry.pop("file"), **entry)
        return caption_items(entry.pop("images"), **entry)
    except EAHError as error:
        msg = f"items from {source}: {error}"
        raise type(error)(msg) from error


# ---- What a study file may say, as pydantic models; made when the first one is read.


@functools.cache
def make_base() -> Any:
    """Make the model that all others extend: it refuses keys that it does not know.

    Raises:
        ExtraMissingError: If pydantic is not installed.
    """
    try:
        from pydantic import BaseModel, ConfigDict, model_validator
        from pydantic_core import PydanticCustomError
    except ImportError as error:
        msg = "study files need pydantic: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error

    class Strict(BaseModel):
        # A donor may be a function.
        model_config = ConfigDict(arbitrary_types_allowed=True)

        @model_validator(mode="before")
        @classmethod
        def refuse_unknown(cls, values: Any) -> Any:
            if not isinstance(values, Mapping):
                raise PydanticCustomError("no_mapping", "keys with values", {})
            known = ", ".join(cls.model_fields)
            for key in values:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", f"one of the keys {known}", {"key": key}
                    )
            return values

    return Strict


@functools.cache
def make_study_schema() -> Any:
    """Make the model of a whole study file; conditions are left to their kinds."""
    base = make_base()
    import pydantic
    from pydantic import Field, PositiveInt

    create_model: Any = pydantic.create_model

    samplings = list[Literal["random", "popular", "adversarial"]]
    limit: Any = (PositiveInt | None, None)
    model = create_model(
        "Model",
        __base__=base,
        name=(str, "toy"),
        dtype=(Literal["float32", "bfloat16", "float16", "auto"] | None, None),
        device_map=(str | None, None),
        attn_implementation=(str | None, None),
        revision=(str | None, None),
    )
    toy = create_model(
        "Toy",
        __base__=base,
        source=(Literal["toy"], ...),
        n_scenes=(PositiveInt, ...),
        split=(Literal["train", "validation", "test"], "test"),
        questions=(bool, True),
        captions=(bool, True),
        samplings=(samplings, ["random", "popular", "adversarial"]),
    )
    pope = create_model(
        "Pope",
        __base__=base,
        source=(Literal["pope"], ...),
        questions=(str, ...),
        images=(str, ...),
        suffix=(str, ""),
        kind=(str, ""),
        limit=limit,
    )
    asked: Any = {
        "__base__": base,
        "questions": (str, ...),
        "images": (str, ...),
        "limit": limit,
    }
    benchmarks: Any = (
        create_model(
            "Amber",
            **{key: value for key, value in asked.items() if key != "questions"},
            source=(Literal["amber"], ...),
            queries=(str, ...),
            annotations=(str, ...),
            suffix=(str, ""),
        ),
        create_model("Mme", **asked, source=(Literal["mme"], ...)),
        create_model(
            "HallusionBench",
            **asked,
            source=(Literal["hallusionbench"], ...),
            figures_only=(bool, False),
            suffix=(str, ""),
        ),
        create_model("Mmvp", **asked, source=(Literal["mmvp"], ...), suffix=(str, "")),
    )
    captions = create_model(
        "Captions",
        __base__=base,
        source=(Literal["captions"], ...),
        images=(str | list[str], ...),
        prompt=(str | list[dict[str, Any]], "Describe the image."),
        limit=limit,
    )
    column: Any = (str | None, None)
    own = create_model(
        "Table",
        __base__=base,
        source=(Literal["table"], ...),
        file=(str, ...),
        task=(Literal["yes_no", "caption"], "yes_no"),
        image=(str, "image"),
        question=(str, "question"),
        label=(str, "label"),
        objects=(str, "objects"),
        name=column,
        kind=column,
        cluster=column,
        images=column,
        prompt=(str | list[dict[str, Any]], "Describe the image."),
        suffix=(str, ""),
        download=column,
        limit=limit,
    )
    decoding = create_model(
        "Decoding",
        __base__=base,
        yes_no=(dict[str, Any], {}),
        caption=(dict[str, Any], {}),
        choice=(dict[str, Any], {}),
    )
    source: Any = Field(discriminator="source")
    kinds: Any = toy | pope | captions | own
    for one in benchmarks:
        kinds = kinds | one
    return create_model(
        "StudyFile",
        __base__=base,
        model=(model, Field(default_factory=model)),
        items=(
            _list_of(Annotated[kinds, source]),
            Field(min_length=1),
        ),
        conditions=(list[Any], Field(min_length=1)),
        decoding=(decoding, Field(default_factory=decoding)),
        batch_size=(PositiveInt, 32),
        sinks=(bool, False),
        seed=(int, 0),
    )


def _list_of(kind: Any) -> Any:
    return list[kind]


# ---- Conditions as a study file writes them: by the kind of what is done.


MOST_CONDITIONS = 10_000
"""How many combinations a sweep may have: ten axes of ten values have a million times
as many."""

PRESETS = ("paper", "official")
"""Class methods that make a kind's published settings."""


def read_condition(entry: Any, *, seed: int) -> tuple[Condition, ...]:
    """Read an entry of `conditions:`.

    Args:
        entry: `baseline` or another name of `PLAIN`, a kind, `{kind: ..., ...}`,
            `{controls: ...}`, `{sweep: {setting: [...]}, ...}`, or what changes
            something else than the model: `{ask: ...}`, `{near_tie: ...}`,
            `{decoding: ...}`, beside a kind or alone with a name.
        seed: For settings that have a seed and are given none.

    Returns:
        One condition; several for controls and sweeps.

    Raises:
        ValueError: If it says something else; pydantic's error has the place.

    Example:
        >>> [c.name for c in read_condition({"sweep": {"layers": [0, 1]}}, seed=0)]
        ['EAH layers=0', 'EAH layers=1']
    """
    if isinstance(entry, str) and entry in PLAIN:
        return (PLAIN[entry],)
    if isinstance(entry, str) and entry in list_kinds():
        entry = {"kind": entry}
    if isinstance(entry, Mapping) and "controls" in entry:
        return _read_controls(entry, seed=seed)
    if isinstance(entry, Mapping) and "sweep" in entry:
        rest, changes = _split(entry)
        found = _read_sweep(rest, seed=seed)
        where = name_tower(changes.get("tower", "language"))
        return tuple(
            dataclasses.replace(one, name=one.name + where, **changes) for one in found
        )
    if isinstance(entry, Mapping) and "kind" in entry:
        rest, changes = _split(entry)
        name, kind, patch = _make(rest, seed=seed)
        where = name_tower(changes.get("tower", "language"))
        return (Condition(name or _name(kind, rest) + where, patch, **changes),)
    if isinstance(entry, Mapping) and set(CHANGES) & set(entry):
        rest, changes = _split(entry)
        if set(rest) != {"name"}:
            msg = (
                "a condition without a kind has a name and some of "
                f"{', '.join(CHANGES)}, got {', '.join(map(str, entry))}"
            )
            raise ValueError(msg)
        return (Condition(rest["name"], **changes),)
    msg = (
        f"expected {', '.join(PLAIN)}, {', '.join(list_kinds())}, or keys with values "
        "that begin with kind, controls, sweep or one of "
        f"{', '.join(CHANGES)}, got {show_value(entry)}"
    )
    raise ValueError(msg)


CHANGES = ("ask", "near_tie", "decoding")
"""What an entry may change beside the model."""

TOWER = "tower"
"""Where an entry says in which tower its kind acts."""


def _split(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part an entry into what its kind reads, and what it changes beside that.

    A kind of a user's own may have a setting of such a name: it is the kind's.
    """
    named = entry.get("kind", "eah" if "sweep" in entry else None)
    kind = list_kinds().get(named) if isinstance(named, str) else None
    own = {field.name for field in dataclasses.fields(kind)} if kind else set()
    changes = {
        key: value
        for key, value in entry.items()
        if key in (*CHANGES, TOWER) and key not in own
    }
    rest = {key: value for key, value in entry.items() if key not in changes}
    if "near_tie" in changes:
        given = changes["near_tie"]
        changes["near_tie"] = NearTie.from_dict({} if given is True else given)
    return rest, changes


def _read_controls(entry: Mapping[str, Any], *, seed: int) -> tuple[Condition, ...]:
    """Read `controls: ...`, alone for EAH or beside a kind, with the nulls that fit."""
    checked = make_controls_schema()
    tower = entry.get(TOWER, "language")
    entry = {key: value for key, value in entry.items() if key != TOWER}
    if "kind" not in entry:
        given = checked.model_validate(entry).controls
        settings = {} if given is True else given
        eah = _make({"kind": "eah", **settings}, seed=seed)[2]
        return control_conditions(eah, tower=tower)
    rest = {key: value for key, value in entry.items() if key != "controls"}
    given = checked.model_validate({"controls": entry["controls"]}).controls
    options = {} if given is True else dict(given)
    if set(options) - {"draws", "seed"}:
        msg = (
            "controls beside a kind must be true, or have draws and seed, got "
            f"{', '.join(map(str, options))}"
        )
        raise ValueError(msg)
    name, kind, patch = _make(rest, seed=seed)
    return control_conditions(
        patch,
        name=name or _name(kind, rest) + name_tower(tower),
        tower=tower,
        **{"seed": seed, **options},
    )


def _make(entry: Mapping[str, Any], *, seed: int) -> tuple[str | None, str, Any]:
    """Make the settings of an entry, `preset` included, with its name and kind."""
    kind = entry["kind"]
    if not isinstance(kind, str) or kind not in list_kinds():
        msg = f"kind must be one of {', '.join(list_kinds())}, got {show_value(kind)}"
        raise ValueError(msg)
    settings: Any = list_kinds()[kind]
    checked = make_kind_schema(settings).model_validate(entry)
    given = {name: getattr(checked, name) for name in checked.model_fields_set}
    _, name, preset = (given.pop(key, None) for key in ("kind", "name", "preset"))
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
        msg = f"sweep must be settings with lists of values, got {show_value(axes)}"
        raise ValueError(msg)
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            msg = f"sweep of {name} must be a list of values, got {show_value(values)}"
            raise ValueError(msg)
    n_conditions = math.prod(map(len, axes.values()))
    if n_conditions > MOST_CONDITIONS:
        msg = (
            f"sweep must be of at most {MOST_CONDITIONS} combinations, got "
            f"{n_conditions}"
        )
        raise ValueError(msg)
    found = []
    for changes in combine(axes):
        name, kind, patch = _make(base | changes, seed=seed)
        first = name or _name(kind, {"preset": base.get("preset")})
        found.append(Condition(name_changes(first, changes), patch))
    return tuple(found)


def _name(kind: str, entry: Mapping[str, Any]) -> str:
    """Name a condition that was given no name: kind, preset, and what differs."""
    first = list_kinds()[kind].__name__
    first += f" {entry['preset']}" if entry.get("preset") else ""
    changed = {k: v for k, v in entry.items() if k not in ("kind", "preset", "name")}
    return name_changes(first, changed)


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
def make_kind_schema(settings: type[Intervention]) -> Any:
    """Make the model of a kind from the fields of its settings."""
    base = make_base()
    from pydantic import BeforeValidator, create_model

    presets = tuple(name for name in PRESETS if hasattr(settings, name))
    fields: dict[str, Any] = {
        "kind": (Literal[settings.kind], ...),
        "name": (str | None, None),
    }
    if presets:
        fields["preset"] = (Literal[presets] | None, None)
    for field in dataclasses.fields(settings):
        needed = field.default is dataclasses.MISSING
        needed = needed and field.default_factory is dataclasses.MISSING
        kind_of: Any = _as_it_is(field.type)
        several = Annotated[kind_of, BeforeValidator(_taken(field.name))]
        fields[field.name] = (several, ... if needed else None)
    return create_model(settings.__name__, __base__=base, **fields)


def _as_it_is(kind: Any) -> Any:
    """Take a dataclass, such as directions, as it is: a file's mapping is none."""
    from pydantic import InstanceOf

    if get_origin(kind) in (Union, UnionType):
        return functools.reduce(operator.or_, map(_as_it_is, get_args(kind)))
    instance: Any = InstanceOf
    return instance[kind] if dataclasses.is_dataclass(kind) else kind


def _taken(name: str) -> Any:
    """Take `layers: 1` for `layers: [1]`, and `donor: {plugin: ...}` for its code."""
    alone = name in ("layers", "recipients", "heads")

    def take(value: Any) -> Any:
        if name == "donor" and isinstance(value, Mapping):
            return find_plugin(value)
        return [value] if alone and isinstance(value, int) else value

    return take
