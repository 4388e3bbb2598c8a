"""Odd values, and arguments of a call of which some are replaced by them."""

import contextvars
import dataclasses
import datetime
import decimal
import fractions
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from eah_interp.indices import is_dense
from tests.fuzz.harness import Input

Rng = np.random.Generator


def odd_values() -> list[Any]:
    """Return values that few doors expect, of every type that may stray in."""
    nan, inf = float("nan"), float("inf")
    return [
        *(None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 2**64, 10**400),
        *(-(2**63), 10**5000, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, nan, inf, -inf, 1j),
        *("", " ", "1", "all", "plain", "L1H0", "L99H0", "L1", "é", "猫", "\ud800"),
        *("\x00", "a\nb", "x" * 10_000, "../..", "densest", "1:", "::", "-5:", "toy"),
        *(b"", b"\xff\xfe", bytearray(b"a"), (), [], {}, set(), frozenset({1})),
        *((0,), (1, 1), [-1], [0, 1.5], ["a"], [None], [[0]], [(0, 0)], [("a", 0)]),
        *([(1, 0), "L1H1"], {"a": 1}, {1: None}, {"x": [nan]}, range(3), range(0)),
        *(np.int64(1), np.int8(-1), np.uint64(2**63), np.float32(nan), np.float16(0.5)),
        *(np.bool_(True), np.array([0, 1]), np.array([]), np.array("x"), np.array(nan)),
        *(np.array([[1, 0]]), np.array([None], dtype=object), np.str_("all")),
        *(np.datetime64("2020-01-01"), np.array(["a", "b"]), np.array([True, False])),
        *(pd.Series([1, 2]), pd.Series([], dtype=float), pd.Series(["a", None])),
        *(pd.NA, pd.NaT, pd.Timestamp("2020"), pd.DataFrame(), pd.Index([0, 1])),
        *(pd.DataFrame({"a": [1, nan]}), pd.Categorical(["a", "b"])),
        *(torch.tensor(1), torch.tensor([1.0]), torch.zeros(0), torch.tensor(nan)),
        *(torch.eye(2).to_sparse(), torch.nested.nested_tensor([torch.ones(2)])),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        *(torch.zeros(2, device="meta"), torch.ones(1, 1, dtype=torch.bool)),
        *(torch.tensor([0, 1]), torch.float32, torch.device("cpu")),
        *(decimal.Decimal("0.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 2)),
        *(object(), int, print, pathlib.Path("nowhere"), datetime.date(2020, 1, 1)),
        *(
            iter([1]),
            memoryview(b"ab"),
            Ellipsis,
            NotImplemented,
            slice(0, 2),
            KeyError,
        ),
    ]


def show(value: Any) -> str:
    """Write a value so that it can be read, whatever it is."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_nested:  # it has no shape
            return f"Tensor({kind}, nested)"
        return f"Tensor({kind}, {tuple(value.shape)}, {value.device})"
    if isinstance(value, int) and abs(value) > 10**50:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, pd.DataFrame | pd.Series):
        return f"{type(value).__name__}{value.shape}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r:.40}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(show(v) for v in value[:6])})"
    text = re.sub(r" at 0x[0-9a-f]+", "", ascii(value))
    return text if len(text) < 80 else text[:77] + "..."


def pick(rng: Rng, options: Any) -> Any:
    """Choose one of a list, whatever it holds."""
    return options[int(rng.integers(len(options)))]


def odd(rng: Rng) -> Any:
    """Choose an odd value; once in eight a list, tuple or mapping of some."""
    kind = int(rng.integers(24))
    values = odd_values()
    if kind == 0:
        return [pick(rng, values) for _ in range(int(rng.integers(1, 4)))]
    if kind == 1:
        return tuple(pick(rng, values) for _ in range(int(rng.integers(1, 4))))
    if kind == 2:
        return {pick(rng, ["a", "kind", "name", 1, ""]): pick(rng, values)}
    return pick(rng, values)


def odd_text(rng: Rng) -> str:
    """Choose a text: plain, empty, long, of other scripts, of control signs."""
    texts = [
        "",
        " ",
        "\n\t",
        "a",
        "Is there a boat in the image?",
        "猫はいますか",
        "é" * 300,
    ]
    texts += [
        "<image>",
        "<image><image>",
        "</s>",
        "USER: <image>\nhi ASSISTANT:",
        "\x00",
    ]
    texts += ["\u202eabc", "boat " * 50, "🐟", "%s {} {0} {x}", "\ud83d", "[bold]x[/]"]
    return str(pick(rng, texts))


def odd_tensor(rng: Rng, tensor: torch.Tensor) -> Any:
    """Change a tensor in one way: its type, shape, layout, place or numbers."""
    if tensor.is_meta or not is_dense(tensor):  # changed once: few operations are left
        return tensor
    ways: list[Callable[[torch.Tensor], Any]] = [
        torch.Tensor.half,
        torch.Tensor.bfloat16,
        torch.Tensor.double,
        torch.Tensor.long,
        torch.Tensor.bool,
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.uint8),
        lambda t: t.unsqueeze(0),
        lambda t: t.flatten(),
        lambda t: t.reshape(-1)[0] if t.numel() else t,
        lambda t: t[:0],
        lambda t: t[..., :0],
        lambda t: t[..., :-1],
        lambda t: torch.cat([t, t], 0),
        lambda t: torch.cat([t, t], -1),
        lambda t: t.transpose(0, -1),
        lambda t: torch.zeros_like(t),
        lambda t: torch.ones_like(t),
        lambda t: -t.float(),
        lambda t: t.float() * 1e30,
        lambda t: t.float() * 1e-40,
        lambda t: torch.full_like(t.float(), float("nan")),
        lambda t: torch.full_like(t.float(), float("inf")),
        lambda t: _with_one(rng, t, float("nan")),
        lambda t: _with_one(rng, t, float("-inf")),
        lambda t: _with_one(rng, t, 99),
        lambda t: _with_one(rng, t, -7),
        lambda t: t.numpy() if t.dtype != torch.bfloat16 else t,
        lambda t: t.tolist(),
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: t.to_sparse_csr() if t.ndim == 2 else t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
        lambda t: torch.nested.nested_tensor(list(t)) if t.ndim > 1 and len(t) else t,
        lambda t: t.float().requires_grad_(),
        lambda t: t[..., ::2],
        lambda t: torch.nn.Parameter(t.float()),
    ]
    return pick(rng, ways)(tensor.clone())


def _with_one(rng: Rng, tensor: torch.Tensor, number: float) -> torch.Tensor:
    whole = isinstance(number, int) and not tensor.is_floating_point()
    flat = tensor.flatten().long() if whole else tensor.flatten().float()
    if flat.numel():
        flat[int(rng.integers(flat.numel()))] = number
    return flat.view(tensor.shape)


@dataclasses.dataclass
class Swap:
    """What `change` does while every argument is tried with every odd value.

    Attributes:
        name: The argument that is replaced; none when empty.
        place: The place of its new value in `odd_values`.
        seen: Which arguments there are.
    """

    name: str = ""
    place: int = 0
    seen: dict[str, None] = dataclasses.field(default_factory=dict)


SWAP: contextvars.ContextVar[Swap | None] = contextvars.ContextVar("SWAP", default=None)


def change(rng: Rng, base: Mapping[str, Any], *, most: int = 2) -> dict[str, Any]:
    """Replace up to some of a call's arguments by odd ones."""
    names = list(base)
    changed = dict(base)
    swap = SWAP.get()
    if swap is not None:
        swap.seen |= dict.fromkeys(names)
        if swap.name in changed:
            changed[swap.name] = odd_values()[swap.place]
        return changed
    for _ in range(int(rng.integers(0, most + 1))):
        name = pick(rng, names)
        value = base[name]
        tensor = isinstance(value, torch.Tensor) and rng.random() < 0.8
        changed[name] = odd_tensor(rng, value) if tensor else odd(rng)
    return changed


def input_of(
    function: Callable[..., Any],
    /,
    *args: Any,
    may_be_nan: frozenset[str] = frozenset(),
    then: Callable[[Any], Any] | None = None,
    called: str | None = None,
    **kwargs: Any,
) -> Input:
    """Make the input that calls a function.

    Args:
        function: What is called.
        *args: Its positional arguments.
        may_be_nan: As in `Input`.
        then: What is done with the result.
        called: The function's name, in what is shown.
        **kwargs: Its keywords.
    """
    given = [show(one) for one in args]
    given += [f"{key}={show(value)}" for key, value in kwargs.items()]

    def call() -> Any:
        found = function(*args, **kwargs)
        return found if then is None else then(found)

    named = called or getattr(function, "__qualname__", str(function))
    return Input(call, f"{named}({', '.join(given)})", may_be_nan)
