"""Checks of plain arguments at the door: what they are, before anything is done."""

import dataclasses
import difflib
import functools
import inspect
import os
from abc import ABCMeta
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from eah_interp.errors import (
    EAHError,
    InputError,
    KeywordError,
    SettingsError,
    show_value,
)
from eah_interp.indices import check_integer, to_float

Kind = TypeVar("Kind")
Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def check_kind(
    name: str,
    value: object,
    kind: type[Kind] | tuple[type[Kind], ...],
    *,
    expected: str,
    error: type[EAHError] = InputError,
) -> Kind:
    """Check what an argument is an instance of.

    Args:
        name: Of the argument.
        value: What was given.
        kind: The class, or several.
        expected: What it is in words, with an article.
        error: What is raised.

    Raises:
        EAHError: As `error`, if it is something else.

    Example:
        >>> check_kind("caption", 3, str, expected="a text")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: caption must be a text, got 3
    """
    if not isinstance(value, kind):
        raise error(f"{name} must be {expected}, got {show_value(value)}")
    return value


def check_text(name: str, value: object, *, error: type[EAHError] = InputError) -> str:
    """Check that an argument is a text that can be written, and make it a plain one.

    Raises:
        EAHError: As `error`, if it is something else, or holds half a character.
    """
    text = check_kind(name, value, str, expected="a text", error=error)
    return check_unicode(name, text, error=error)


def check_unicode(name: str, text: str, *, error: type[EAHError] = InputError) -> str:
    """Check that a text can be written, and a tokenizer read it; make it a plain one.

    Raises:
        EAHError: As `error`, if it holds half a character, as text of undecodable
            bytes does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        msg = (
            f"{name} holds half a character (a surrogate) at {cause.start}: expected "
            f"text of whole ones, got {show_value(text)}"
        )
        raise error(msg) from cause
    return str(text)


MOST_NAME, MOST_PATH = 255, 4000
"""How long, in bytes, a file's name and a whole path can be on most systems."""


def check_path(name: str, value: object, *, error: type[EAHError] = InputError) -> Path:
    """Check that an argument is a path.

    Raises:
        EAHError: As `error`, if it is something else, holds a sign that no path has,
            or is longer than one can be.

    Example:
        >>> check_path("path", b"a.json")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: path must be a path, as text or pathlib's, \
got b'a.json'
    """
    given = value
    if isinstance(value, os.PathLike) and not isinstance(value, str):
        given = value.__fspath__()
    if not isinstance(given, str) or "\0" in given or not _is_encodable(given):
        msg = f"{name} must be a path, as text or pathlib's, got {show_value(value)}"
        raise error(msg)
    path = Path(given)
    # Asked of such a name whether it is there, a system may raise and not say no.
    names = [os.fsencode(part) for part in (*path.parts, given)]
    longest = max(map(len, names[:-1]), default=0)
    if longest > MOST_NAME or len(names[-1]) > MOST_PATH:
        got = show_value(given)
        msg = (
            f"{name} is too long for a path: expected names of up to {MOST_NAME} bytes"
        )
        raise error(f"{msg}, got {got}")
    return path


def _is_encodable(text: str) -> bool:
    """Whether the file system can have a text in a name; undecodable bytes can be."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def check_mapping(
    name: str, value: object, *, error: type[EAHError] = SettingsError
) -> Mapping[str, Any]:
    """Check that an argument is a mapping whose keys are texts.

    Raises:
        EAHError: As `error`, if it is something else.
    """
    expected = "a mapping"
    found: Mapping[Any, Any] = check_kind(
        name,
        value,
        Mapping,
        expected=expected,
        error=error,
    )
    odd = [key for key in found if not isinstance(key, str)]
    if odd:
        raise error(f"{name} must have texts as keys, got {show_value(odd[0])}")
    return found


def check_flag(name: str, value: object) -> bool:
    """Check that a switch is True or False, and make it a plain one.

    Of other values Python takes some for True that say the contrary ("no"), and of
    some it cannot tell (a tensor).

    Raises:
        SettingsError: If it is something else.

    Example:
        >>> check_flag("progress", "no")
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: progress must be True or False, got 'no'
    """
    # NumPy's has a class of its own; NumPy itself is not needed to tell.
    numpy = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    plain: object = value.item() if numpy else value  # type: ignore[attr-defined]
    check_kind(name, plain, bool, expected="True or False", error=SettingsError)
    return bool(plain)


def check_count(name: str, value: object) -> int:
    """Check that a number of things is an integer of 1 or more, and make it plain.

    Raises:
        SettingsError: If it is not.
    """
    return check_integer(name, value, least=1)


def check_limit(name: str, value: object) -> int | None:
    """Check that a limit is None, or an integer of 0 or more, and make it plain.

    Raises:
        SettingsError: If it is not.
    """
    return None if value is None else check_integer(name, value)


def check_level(value: object) -> float:
    """Check that a confidence level lies between 0 and 1.

    Raises:
        SettingsError: If it does not.
    """
    number = to_float(value)
    if number is None or not 0 < number < 1:
        msg = f"level must be a share between 0 and 1, got {show_value(value)}"
        raise SettingsError(msg)
    return number


# ---- Names of arguments: those of neighbours are taken, others refused by name.

SYNONYMS: tuple[frozenset[str], ...] = (
    frozenset({"images", "image"}),
    frozenset(
        {"prompts", "prompt", "questions", "question", "texts", "text", "messages"}
    ),
    frozenset({"eah", "patch", "settings", "intervention"}),
    frozenset(
        {"name_or_path", "pretrained_model_name_or_path", "model_name", "model_id"}
    ),
)
"""Words for one argument, here, in nnsight and in transformers."""

NEAR = 0.75
"""How alike a word must be to one that is meant (difflib's ratio)."""


def rename_keywords(
    what: str,
    given: Mapping[str, Any],
    accepted: Collection[str],
    *,
    taken: Collection[str] = (),
    passes_on: bool = False,
) -> dict[str, Any]:
    """Read keywords under the names that a function has for them.

    The singular is read for the plural and the other way round, and synonyms for each
    other, where only one argument can be meant and it is not given already.

    Args:
        what: The function's name, for the message.
        given: The keywords.
        accepted: The function's own names.
        taken: Those that were given without a name.
        passes_on: Whether other keywords are somebody else's to read.

    Returns:
        The keywords.

    Raises:
        KeywordError: If one is none of the function's; it says which are, and which
            may have been meant.

    Example:
        >>> rename_keywords("describe", {"image": "a.png"}, ("images", "prompts"))
        {'images': 'a.png'}
        >>> rename_keywords("describe", {"imgaes": "a.png"}, ("images", "prompts"))
        Traceback (most recent call last):
            ...
        eah_interp.errors.KeywordError: describe has no argument 'imgaes': did you \
mean images? It takes images, prompts
    """
    found: dict[str, Any] = {}
    used = {*taken, *given}
    for name, value in given.items():
        meant = name if name in accepted else _find_synonym(name, accepted)
        if meant is None and not passes_on:
            raise KeywordError(f"{what} {say_unknown(name, accepted)}")
        meant = name if meant is None else meant
        if meant in found or (meant != name and meant in used):
            msg = f"{what} has one argument for {name} and {meant}: expected one of"
            raise KeywordError(f"{msg} them, got both")
        found[meant] = value
    return found


def say_unknown(name: str, accepted: Iterable[str]) -> str:
    """Say that there is no such argument, what was probably meant, and what there is.

    Example:
        >>> say_unknown("dtyp", ("dtype", "revision"))
        "has no argument 'dtyp': did you mean dtype? It takes dtype, revision"
    """
    listed = list(dict.fromkeys(accepted))
    near = find_near(name, listed)
    hint = f"did you mean {near}? It" if near else "it"
    return f"has no argument {name!r}: {hint} takes {', '.join(listed) or 'none'}"


def find_near(name: str, accepted: Iterable[str]) -> str | None:
    """Find the name that was probably meant; None if none is like it.

    Example:
        >>> find_near("defnition", ["definition", "beta"]), find_near("img", ["images"])
        ('definition', 'images')
    """
    listed = list(accepted)
    synonym = _find_synonym(name, listed)
    if synonym is not None:
        return synonym
    near = difflib.get_close_matches(name.lower(), listed, n=1, cutoff=NEAR)
    if not near and name.lower() in _SHORT:
        near = [word for word in _SHORT[name.lower()] if word in listed]
    return near[0] if near else None


_SHORT = {
    **dict.fromkeys(("img", "imgs", "pic", "picture", "photo"), ("images", "image")),
    **dict.fromkeys(("query", "caption", "ask"), ("prompts", "prompt")),
    **dict.fromkeys(("torch_dtype", "precision"), ("dtype",)),
    **dict.fromkeys(("device",), ("device_map",)),
}
"""Words that are not taken, and what they may stand for."""


def _find_synonym(name: str, accepted: Collection[str]) -> str | None:
    """Find the one argument that another word for it can only mean."""
    number = {f"{name}s", name.removesuffix("s")} - {name}
    found = [word for word in accepted if word in number]
    if not found:
        groups = [group for group in SYNONYMS if name in group]
        found = [w for w in accepted for group in groups if w in group]
    return found[0] if len(found) == 1 else None


@dataclasses.dataclass(frozen=True)
class _Door:
    """What a function can be called with.

    Attributes:
        what: Its name.
        by_place: Names of what may come without a name, in order.
        names: Names of all that may come with one.
        needed: Names without a default.
        endless: Whether any number may come without a name.
        passes_on: Whether other keywords are somebody else's to read.
    """

    what: str
    by_place: tuple[str, ...]
    names: tuple[str, ...]
    needed: frozenset[str]
    endless: bool
    passes_on: bool

    @classmethod
    def of(cls, what: str, signature: inspect.Signature, *, skipped: int) -> "_Door":
        kinds = inspect.Parameter
        listed = list(signature.parameters.values())[skipped:]
        placed = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        named = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        return cls(
            what=what,
            by_place=tuple(one.name for one in listed if one.kind in placed),
            names=tuple(one.name for one in listed if one.kind in named),
            needed=frozenset(
                one.name
                for one in listed
                if one.kind in (*placed, *named) and one.default is kinds.empty
            ),
            endless=any(one.kind is kinds.VAR_POSITIONAL for one in listed),
            passes_on=any(one.kind is kinds.VAR_KEYWORD for one in listed),
        )

    def read(self, n_placed: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Read keywords, and check that what came with and without names fits.

        Raises:
            KeywordError: If not.
        """
        if n_placed > len(self.by_place) and not self.endless:
            first = ", ".join(self.by_place)
            rest = [name for name in self.names if name not in self.by_place]
            takes = f"takes {first} without a name" if first else "takes names only"
            more = f", as in {rest[0]}=..., of {', '.join(rest)}" if rest else ""
            msg = f"{self.what} {takes}, got {n_placed} values; name the others{more}"
            raise KeywordError(msg)
        taken = self.by_place[:n_placed]
        if given:
            given = rename_keywords(
                self.what, given, self.names, taken=taken, passes_on=self.passes_on
            )
        both = [name for name in taken if name in given and name in self.names]
        if both:
            msg = f"{self.what} was given {both[0]} twice: without a name and with one"
            raise KeywordError(msg)
        lacking = [
            name
            for name in dict.fromkeys((*self.by_place, *self.names))
            if name in self.needed and name not in taken and name not in given
        ]
        if lacking:
            msg = (
                f"{self.what} needs {', '.join(lacking)}: it takes "
                f"{', '.join(dict.fromkeys((*self.by_place, *self.names)))}"
            )
            raise KeywordError(msg)
        return dict(given)


def by_name(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Have a function's arguments read by `rename_keywords`.

    What it is called with is read under its own names; what it has not is refused with
    the names that it has. A method's `self` is none of them.

    Args:
        function: A public function, or method.

    Example:
        >>> @by_name
        ... def count(images, *, layers=()):
        ...     return len(images)
        >>> count(image=[1, 2])
        2
        >>> count([1], layrs=(1,))
        Traceback (most recent call last):
            ...
        eah_interp.errors.KeywordError: count has no argument 'layrs': did you mean \
layers? It takes images, layers
    """
    signature = inspect.signature(function)
    skipped = int(next(iter(signature.parameters), "") == "self")
    door = _Door.of(function.__name__, signature, skipped=skipped)

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        read: Any = door.read(len(args) - skipped, kwargs)
        return function(*args, **read)

    return call


Class = TypeVar("Class", bound=type)


def methods_by_name(kind: Class) -> Class:
    """Have the public methods of a class read their arguments as `by_name` does.

    Example:
        >>> @methods_by_name
        ... class Result:
        ...     def top(self, k=3):
        ...         return k
        >>> Result().top(n=2)
        Traceback (most recent call last):
            ...
        eah_interp.errors.KeywordError: top has no argument 'n': it takes k
    """
    for name, member in list(vars(kind).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(kind, name, by_name(member))
    return kind


class Named(ABCMeta):
    """The class of classes whose arguments are read as those of `by_name` functions."""

    if not TYPE_CHECKING:  # which reads what a class is called with off its __init__

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make one."""
            # By hand: where the class has travelled to a server, super() has no cell.
            read = _door_of(cls).read(len(args), kwargs)
            return type.__call__(cls, *args, **read)

    @property
    def __signature__(cls) -> inspect.Signature:
        """What notebooks and `help` show of the class: what it is called with."""
        own = inspect.signature(getattr(cls, "__init__"))  # noqa: B009 - of a class
        listed = list(own.parameters.values())[1:]
        return inspect.Signature(listed)


def _door_of(kind: type) -> _Door:
    found = vars(kind).get("_door")
    if found is None:
        if dataclasses.is_dataclass(kind):
            fields = [item for item in dataclasses.fields(kind) if item.init]
            empty = inspect.Parameter.empty
            parameters = [
                inspect.Parameter(
                    item.name,
                    inspect.Parameter.KEYWORD_ONLY
                    if item.kw_only
                    else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=empty if _is_needed(item) else None,
                )
                for item in sorted(fields, key=lambda item: bool(item.kw_only))
            ]
            signature, skipped = inspect.Signature(parameters), 0
        else:
            signature, skipped = inspect.signature(vars(kind)["__init__"]), 1
        found = _Door.of(kind.__name__, signature, skipped=skipped)
        kind._door = found  # type: ignore[attr-defined]
    return found


def _is_needed(item: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return item.default is missing and item.default_factory is missing
