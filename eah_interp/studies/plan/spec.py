"""A study written in a file: read, checked to the line, and made into a study."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eah_interp.errors import EAHError, SettingsError
from eah_interp.studies.plan.conditions import Condition, check_conditions
from eah_interp.studies.plan.decoding import complete_decoding
from eah_interp.studies.plan.items import (
    Item,
    caption_items,
    check_items,
    pope_items,
    toy_items,
)
from eah_interp.studies.plan.kinds import read_condition
from eah_interp.studies.plan.schema import make_study_schema
from eah_interp.studies.plan.source import ModelSource
from eah_interp.studies.plan.wording import explain, locate, prefix
from eah_interp.studies.plan.yaml_file import YamlFile
from eah_interp.studies.run.work import Batch, split_batches
from eah_interp.studies.study import Study


@dataclass(frozen=True)
class StudyFile:
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
        file = YamlFile.read(path)
        values = _with_list(file.values)
        checked = _check(file, values)
        conditions = _read_conditions(file, values["conditions"], seed=checked.seed)
        items: list[Item] = []
        for entry in checked.items:
            items += _list_items(entry.model_dump(), folder=file.path.parent)
        check_items(items)
        return cls(
            path=file.path,
            source=ModelSource(**checked.model.model_dump()),
            items=tuple(items),
            conditions=conditions,
            decoding=complete_decoding(checked.decoding.model_dump()),
            batch_size=checked.batch_size,
            sinks=checked.sinks,
            seed=checked.seed,
        )

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Items by the forward pass that they share."""
        return split_batches(self.items, self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Say what would run, as JSON can hold it."""
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
        except ValidationError as error:
            wrong += explain(file, error, place)
        except ValueError as error:  # also our own SettingsError
            wrong.append(locate(file, place, entry, str(error)))
        else:  # controls bring a baseline, which may stand there already
            found += (
                several
                if len(several) == 1
                else [condition for condition in several if condition not in found]
            )
    if wrong:
        raise SettingsError("; ".join(wrong))
    try:
        check_conditions(found)
    except SettingsError as error:
        where = prefix(file, ["conditions"])
        msg = f"{where}{error}; give them a name of their own"
        raise SettingsError(msg) from error
    return tuple(found)


def _list_items(entry: dict[str, Any], *, folder: Path) -> tuple[Item, ...]:
    source = entry.pop("source")
    paths = [key for key in ("questions", "images") if source != "toy" and key in entry]
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
        return caption_items(entry.pop("images"), **entry)
    except EAHError as error:
        msg = f"items from {source}: {error}"
        raise type(error)(msg) from error
