"""Shipping this package with a trace, to servers that do not have it.

NDIF's servers know nnsight and transformers, not `eah_interp`. nnsight can send a
module's source along (`nnsight.register`). Two things stand in the way, and are taken
off while a request is written: annotations (jaxtyping's shapes would have to be
imported over there only to be ignored), and, where the traced block names the package
itself (`eah.intervene`), everything in it that no trace needs.
"""

import contextlib
import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import nnsight
from nnsight.schema.request import RequestModel

PACKAGE = "eah_interp"

SHIPPED = (
    *("EAH", "EAHError", "EAHPatch", "LayerPatch", "intervene"),
    *("Ablation", "PAI", "Steer", "VAR"),
)
"""What of the package's own namespace a server gets."""

_shipping: ContextVar[bool] = ContextVar("shipping", default=False)


def is_shipping() -> bool:
    """Whether a request for a server is being written right now."""
    return _shipping.get()


def ship_package(backend: Any) -> Any:
    """Make a remote backend send this package's source with every request.

    Args:
        backend: nnsight's backend for one remote run.

    Returns:
        The same backend.
    """
    nnsight.register(sys.modules[PACKAGE])
    kind = type(backend)

    class ShippingBackend(kind):  # type: ignore[misc, valid-type]
        """A backend that writes its requests with the package in them."""

        def __call__(self, tracer: Any) -> Any:
            with _requests_carry_package():
                return super().__call__(tracer)

    backend.__class__ = ShippingBackend
    return backend


@contextlib.contextmanager
def _requests_carry_package() -> Iterator[None]:
    plain = RequestModel.__dict__["serialize"]

    def serialize(cls: type[RequestModel], *args: Any, **kwargs: Any) -> bytes:
        with bare_package():
            written: bytes = plain.__get__(None, cls)(*args, **kwargs)
        return written

    RequestModel.serialize = classmethod(serialize)
    try:
        yield
    finally:
        RequestModel.serialize = plain


@contextlib.contextmanager
def bare_package() -> Iterator[None]:
    """Strip the package, for a while, to what a server can run."""
    kept: list[tuple[Any, str, Any]] = []
    for module in [m for n, m in sys.modules.items() if _ours(n)]:
        for name, thing in list(vars(module).items()):
            kept.extend(_annotated(thing))
            if _is_shape(thing):
                kept.append((module, name, thing))
    package = sys.modules[PACKAGE]
    for name in SHIPPED:
        getattr(package, name)  # imported when first used; over there it must be
    hidden = {
        name: value
        for name, value in vars(package).items()
        if not _is_shipped(name, value)
        and (not name.startswith("__") or callable(value))
    }
    token = _shipping.set(True)
    try:
        for owner, name, value in kept:
            setattr(owner, name, {} if isinstance(value, dict) else None)
        for name in hidden:
            delattr(package, name)
        yield
    finally:
        vars(package).update(hidden)
        for owner, name, value in kept:
            setattr(owner, name, value)
        _shipping.reset(token)


def _is_shipped(name: str, value: object) -> bool:
    # Methods of other papers stand in no list: what has a kind is an intervention.
    return name in SHIPPED or isinstance(getattr(value, "kind", None), str)


def _ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def _is_shape(thing: object) -> bool:
    """Whether a name stands for a jaxtyping shape, or for what makes one."""
    homes = (getattr(thing, "__module__", None), type(thing).__module__)
    return any(str(home).partition(".")[0] == "jaxtyping" for home in homes)


def _annotated(thing: object) -> Iterator[tuple[Any, str, Any]]:
    if not _ours(getattr(thing, "__module__", None) or ""):
        return
    if isinstance(thing, types.FunctionType):
        yield thing, "__annotations__", thing.__annotations__
    if inspect.isclass(thing):
        if "__annotations__" in vars(thing):
            yield thing, "__annotations__", thing.__annotations__
        if dataclasses.is_dataclass(thing):
            for item in dataclasses.fields(thing):
                yield item, "type", item.type
        for member in vars(thing).values():
            function = getattr(member, "__func__", None) or getattr(
                member, "fget", member
            )
            if isinstance(function, types.FunctionType):
                yield function, "__annotations__", function.__annotations__
