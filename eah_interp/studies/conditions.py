"""Conditions of a study: a name, and what is done to the model."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from eah_interp._types import Tower
from eah_interp.arguments import Named, by_name, check_kind, check_mapping, check_text
from eah_interp.benchmarks.metrics import Task
from eah_interp.errors import SettingsError, show_value
from eah_interp.indices import check_choice, check_integer, to_list
from eah_interp.interventions import EAH, Intervention, edit
from eah_interp.interventions.donation import seed_items
from eah_interp.interventions.in_tower import (
    check_tower_settings,
    find_tower,
    why_not_in_tower,
)
from eah_interp.interventions.intervention import known_kinds, our_kinds
from eah_interp.kernels.sinks import DEFAULT_BETA
from eah_interp.plugins import describe_plugin, find_plugin
from eah_interp.studies.nulls import (
    WHATS,
    YES_PLEASE,
    NearTie,
    RandomDraw,
    has,
)
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


RESERVED = (
    *("name", "code", "ask", "near_tie", "decoding", "random", "tower"),
    "null_of",
)
"""Keys of a condition's mapping that are no kind of intervention."""

TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Condition(metaclass=Named):
    """A name, and what is done to the model under it.

    Besides the model, a condition may change what is asked, how the answer is read and
    how it is decoded. Nulls, against which a gain has to be shown, change nothing else.

    Attributes:
        name: Its name in the results.
        patch: The intervention; None for the model as it is.
        ask: A sentence after every yes/no question; none when empty.
        near_tie: Which yes/no answers are turned to Yes; none when None.
        decoding: Arguments of `generate`, by task; they go before the study's.
        random: What is drawn in place of the patch's own heads or directions.
        null_of: The condition that this one is a null of; empty for all or none.
        tower: Where the patch acts: in the `"language"` model, or in the `"vision"`
            tower, whose layers and heads it names then.

    Raises:
        SettingsError: If a value is impossible, or the patch has nothing to draw for.

    Example:
        >>> Condition("biased", ask="Whenever possible, please select Yes.").tasks
        ('yes_no',)
    """

    name: str
    patch: Intervention | None = None
    ask: str = ""
    near_tie: NearTie | None = None
    decoding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    random: RandomDraw | None = None
    null_of: str = ""
    tower: Tower = "language"

    def __post_init__(self) -> None:
        check_text("a condition's name", self.name, error=SettingsError)
        check_patch("patch", self.patch)
        for name in ("ask", "null_of"):
            check_text(name, getattr(self, name), error=SettingsError)
        kinds: dict[str, tuple[type[Any], str]] = {
            "near_tie": (NearTie, "NearTie()"),
            "random": (RandomDraw, "a RandomDraw"),
        }
        for name, (kind, expected) in kinds.items():
            check_kind(
                name,
                getattr(self, name),
                (kind, type(None)),
                expected=f"{expected}, or None",
                error=SettingsError,
            )
        if self.random is not None:
            self.random.check_has(self.patch)
        self._check_tower()
        object.__setattr__(self, "decoding", _check_decoding(self.decoding))

    def _check_tower(self) -> None:
        """Check that the patch has a meaning in the tower that is named."""
        check_choice("tower", self.tower, Tower)
        if self.tower == "language":
            return
        if self.patch is None:
            msg = (
                'tower="vision" says where a patch acts, and there is none: leave it '
                "out, or add a patch such as eah.EAH()"
            )
            raise SettingsError(msg)
        if why := why_not_in_tower(self.patch):
            raise SettingsError(why)

    def __hash__(self) -> int:
        """Hash the condition by its name: its decoding is a mapping."""
        return hash(self.name)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose answers it can change; none of the model as it is."""
        if self.patch is not None:
            return TASKS
        asked = bool(self.ask) or self.near_tie is not None
        return tuple(
            task
            for task in TASKS
            if task in self.decoding or (asked and task == "yes_no")
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the condition as a mapping of plain values.

        An intervention of a user's own is named, with a hash of its source. What is not
        set is left out, as conditions were written before there was more than a patch.

        Raises:
            SettingsError: If its source, or a donor function's, cannot be read.
        """
        named: dict[str, Any] = {"name": self.name}
        if self.patch is not None:
            kind = type(self.patch)
            named[kind.kind] = self.patch.to_dict()
            if OURS.get(kind.kind) is not kind:
                named["code"] = describe_plugin(kind)
        more = {
            "ask": self.ask,
            "near_tie": self.near_tie and self.near_tie.to_dict(),
            "decoding": {task: dict(given) for task, given in self.decoding.items()},
            "random": self.random and self.random.to_dict(),
            "tower": "" if self.tower == "language" else self.tower,
            "null_of": self.null_of,
        }
        return named | {key: value for key, value in more.items() if value}

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
        kinds = [key for key in values if key not in RESERVED]
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
        more = {key: values[key] for key in RESERVED[2:] if key in values}
        readers: dict[str, Any] = {
            "near_tie": NearTie.from_dict,
            "random": RandomDraw.from_dict,
        }
        for key in set(more) & set(readers):
            more[key] = readers[key](more[key])
        return cls(values["name"], patch, **more)

    def check(self, model: Any) -> None:
        """Check that it fits a model, before anything is run.

        Raises:
            SettingsError: If a layer or head does not exist, or there are not so many
                other heads to draw.
            ModelError: If a layer has no heads.
        """
        if self.patch is None:
            return
        if self.tower == "vision":
            check_tower_settings(model, self.patch)
        else:
            model.check(self.patch)
        if not self.patch.fits_itself:  # nothing is found later
            self.patch.check_fitted()
        if self.random is not None and self.random.can_draw(self.patch):
            n_heads = self._count_heads(model)
            self.random.replace(self.patch, n_heads=n_heads, items=[0])

    def _count_heads(self, model: Any) -> int:
        """Count the heads of a layer of the tower in which the patch acts."""
        in_tower = self.tower == "vision"
        return int(find_tower(model).n_heads if in_tower else model.n_heads)

    def apply(
        self,
        model: Any,
        *,
        seeds: Sequence[int],
        images: Sequence[Any] = (),
        prompts: Sequence[Any] = (),
    ) -> Any:
        """Make the patched twin for a batch.

        Args:
            model: The model as it is.
            seeds: A number for each item, so that what is drawn for it does not
                depend on its batch.
            images: Of the batch, for settings that find something on its items first.
            prompts: The same.
        """
        if self.patch is None:
            return model
        patch: Any = self.patch
        if images:
            patch = patch.fit(model, images, prompts)
        if self.random is not None:
            n_heads = self._count_heads(model)
            patch = self.random.replace(patch, n_heads=n_heads, items=seeds)
        # The vision tower sees images and tiles, as many as there are: one seed draws
        # the same for each of them, whatever batch it stands in.
        if isinstance(patch, EAH) and self.tower == "language":
            patch = seed_items(patch, list(seeds))
        return edit(model, patch, tower=self.tower)


def _check_decoding(decoding: object) -> dict[str, dict[str, Any]]:
    """Check that decoding is by task, and copy it.

    Raises:
        SettingsError: If it is something else.
    """
    found: dict[str, dict[str, Any]] = {}
    for task, given in check_mapping("decoding", decoding).items():
        if task not in TASKS:
            got = show_value(task)
            msg = f"decoding is given by task: expected {', '.join(TASKS)}, got {got}"
            raise SettingsError(msg)
        found[task] = dict(check_mapping(f"decoding of {task}", given))
    return found


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

YES_BIASED = Condition("yes-biased", ask=YES_PLEASE)
"""The model as it is, asked to say yes."""

NEAR_TIE = Condition("near tie", near_tie=NearTie())
"""The model as it is, whose near ties are turned to Yes."""

GREEDY = Condition("greedy", decoding={task: {"do_sample": False} for task in TASKS})
"""The model as it is, decoded greedily: the null of a study that samples."""

SAMPLED = Condition(
    "sampled",
    decoding={task: {"do_sample": True, "temperature": 1.0} for task in TASKS},
)
"""The model as it is, its answers sampled: greedy decoding alone is a gain on that."""

PLAIN: dict[str, Condition] = {
    "baseline": BASELINE,
    "yes_biased": YES_BIASED,
    "near_tie": NEAR_TIE,
    "greedy": GREEDY,
    "sampled": SAMPLED,
}
"""Conditions that patch nothing, by their name in study files."""

CONTROL_DONORS = ("sparsest", "random", "mean", "uniform", "shuffled")


@by_name
def control_conditions(
    eah: Intervention | None = None,
    *,
    name: str | None = None,
    draws: int = 3,
    seed: int = 0,
    tasks: Collection[str] = TASKS,
    tower: Tower = "language",
) -> tuple[Condition, ...]:
    """List the baseline, a patch, and the nulls that fit it.

    Of EAH: every control donor in its place. Of others: draws of as many random
    heads of the same layers, if it has `heads`; of directions of the same norm, if it
    has `vectors`; its own `controls()`, such as an edit of as many other columns
    (`SinkEdit`); and the model as it is, asked to say yes, and with near ties turned
    to Yes. That of a caption's length needs no pass: `cap_captions` cuts the baseline's
    captions to a method's own mean length.

    Args:
        eah: The patch, of any kind; `EAH()` when None.
        name: What it is called; its class when None.
        draws: How many random draws of heads, and of directions.
        seed: Seeds them.
        tasks: Of the study's items: nulls of yes/no answers are left out where there
            are none.
        tower: Where the patch and its controls act, as in `Condition`.

    Raises:
        SettingsError: If a value is impossible.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> [condition.name for condition in control_conditions()]
        ['baseline', 'EAH', 'sparsest', 'random', 'mean', 'uniform', 'shuffled']
        >>> [condition.name for condition in control_conditions(PAI())]
        ['baseline', 'PAI', 'yes-biased', 'near tie']
    """
    check_patch("eah", eah)
    if name is not None:
        check_text("name", name, error=SettingsError)
    n_draws = check_integer("draws", draws, least=1)
    seed = check_integer("seed", seed)
    patch = EAH() if eah is None else eah
    where = name_tower(tower)
    first = type(patch).__name__ + where if name is None else name
    method = Condition(first, patch, tower=tower)
    if isinstance(patch, EAH):
        controls = [
            Condition(
                donor + where,
                dataclasses.replace(patch, donor=donor),  # type: ignore[arg-type]
                tower=tower,
            )
            for donor in CONTROL_DONORS
        ]
        return (BASELINE, method, *controls)
    drawn = [
        Condition(
            f"{first}, random {what} {draw + 1}",
            patch,
            random=RandomDraw(what, draw=draw, seed=seed),
            null_of=first,
            tower=tower,
        )
        for what in WHATS
        if has(patch, what)
        for draw in range(n_draws)
    ]
    own = [
        Condition(f"{first}, {what}", other, null_of=first, tower=tower)
        for what, other in patch.controls().items()
    ]
    answers = (YES_BIASED, NEAR_TIE) if "yes_no" in tasks else ()
    return (BASELINE, method, *own, *drawn, *answers)


def name_tower(tower: Tower) -> str:
    """Say in a condition's name where it acts; nothing in the language model.

    Example:
        >>> name_tower("vision"), name_tower("language")
        (' tower=vision', '')
    """
    return "" if tower == "language" else f" tower={tower}"


@by_name
def sweep(
    axes: Mapping[str, Sequence[Any]],
    *,
    eah: Intervention | None = None,
    prefix: str | None = None,
    tower: Tower = "language",
) -> tuple[Condition, ...]:
    """Vary settings, every combination a condition.

    Args:
        axes: Values by setting.
        eah: The other settings: `EAH`, or another intervention; `EAH()` when None.
        prefix: How names begin; the intervention's name when None.
        tower: Where the interventions act, as in `Condition`.

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
    prefix = kind.__name__ + name_tower(tower) if prefix is None else prefix
    base = eah.to_dict()
    if isinstance(eah, EAH) and eah.beta == DEFAULT_BETA[eah.definition]:
        base.pop("beta")  # each definition has its own
    return tuple(
        Condition(
            name_changes(prefix, changes),
            kind.from_dict(base | changes),
            tower=tower,
        )
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
    beside = "; ".join(_tell_beside(condition))
    if kind is None:
        return ("nothing to the model", beside) if beside else ("nothing", "")
    known = list_kinds().get(kind)
    name = kind if known is None else known.__name__
    told = [
        f"{key}={_write_setting(value)}"
        for key, value in settings.items()
        if key != "steps"
    ]
    return name, "; ".join(filter(None, [", ".join(told), beside]))


def _tell_beside(condition: Mapping[str, Any]) -> Iterator[str]:
    """Tell what a condition changes beside the model, and in which tower."""
    if condition.get("tower"):
        yield f"in the {condition['tower']} tower"
    if condition.get("random"):
        yield str(RandomDraw.from_dict(condition["random"]))
    if condition.get("ask"):
        yield f"asks {condition['ask']!r} after a yes/no question"
    if condition.get("near_tie"):
        tie = NearTie.from_dict(condition["near_tie"])
        yield (
            f"answers Yes where yes and no have more than {tie.mass:g} together and "
            f"differ by less than {tie.gap:g}"
        )
    for task, given in condition.get("decoding", {}).items():
        listed = ", ".join(f"{key}={value}" for key, value in given.items())
        yield f"decodes {task} with {listed or 'the defaults'}"


def list_acted(
    conditions: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[Task, ...]]:
    """List the tasks whose answers each condition can change.

    Args:
        conditions: As a manifest lists them.

    Example:
        >>> from eah_interp.interventions import PAI
        >>> list_acted([YES_BIASED.to_dict(), Condition("PAI", PAI()).to_dict()])
        {'yes-biased': ('yes_no',), 'PAI': ('yes_no', 'caption', 'choice')}
    """
    found: dict[str, tuple[Task, ...]] = {}
    for one in conditions:
        beside = {key: value for key, value in one.items() if key in RESERVED}
        plain = _find_patch(one)[0] is None and not one.get("random")
        name = str(one["name"])
        found[name] = Condition.from_dict(beside).tasks if plain else TASKS
    return found


def is_plain_patch(condition: Mapping[str, Any]) -> bool:
    """Tell whether a condition changes nothing beside the model.

    Args:
        condition: As a manifest lists it. What acts in the vision tower is compared
            with nothing that acts in the language model.
    """
    return not any(condition.get(key) for key in RESERVED[2:-1])


def _find_patch(condition: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    for key, value in condition.items():
        if key not in RESERVED and isinstance(value, Mapping):
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
            str(c["name"]): c["eah"]
            for c in conditions
            if c.get("eah") is not None and is_plain_patch(c)
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
