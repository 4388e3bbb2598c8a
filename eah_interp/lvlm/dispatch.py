"""Finding the attention call in a forward's source, by what it is.

transformers' attention modules all do the same: look a function up in
`ALL_ATTENTION_FUNCTIONS`, assign it, and call it once.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass

from torch import nn

REGISTRY = "ALL_ATTENTION_FUNCTIONS"


@dataclass(frozen=True)
class CallSite:
    """Where a forward calls its attention.

    Attributes:
        variable: Name of the variable that is called.
        line: Line of the call in the forward's source.
        modules_after: Names `x` of the calls `self.x(...)` that follow, in order.
    """

    variable: str
    line: int
    modules_after: tuple[str, ...]


_CALLS: dict[str, CallSite | None] = {}


_KINDS: dict[type[nn.Module], CallSite | None] = {}


def attention_call_of(kind: type[nn.Module]) -> CallSite | None:
    """Find the attention call in a class's forward, reading its source once."""
    if kind not in _KINDS:
        _KINDS[kind] = _read_call(kind)
    return _KINDS[kind]


def _read_call(kind: type[nn.Module]) -> CallSite | None:
    forward = inspect.unwrap(kind.forward)
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except (OSError, TypeError):
        return None
    return find_attention_call(source)


def find_attention_call(source: str) -> CallSite | None:
    """Find the attention call in a forward's source, parsing each source once.

    The memory is a plain dict because this function travels to servers by value,
    which `functools.cache` cannot.
    """
    if source not in _CALLS:
        _CALLS[source] = _parse_call(source) if REGISTRY in source else None
    return _CALLS[source]


def _parse_call(source: str) -> CallSite | None:
    tree = ast.parse(source)
    variables = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and node.value is not None
        and any(
            isinstance(n, ast.Name) and n.id == REGISTRY for n in ast.walk(node.value)
        )
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    dispatch = [
        node
        for node in calls
        if isinstance(node.func, ast.Name) and node.func.id in variables
    ]
    if len(dispatch) != 1:
        return None
    call = dispatch[0]
    after = sorted(
        (node.lineno, node.func.attr)
        for node in calls
        if node.lineno > call.lineno
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
    )
    assert isinstance(call.func, ast.Name)
    return CallSite(call.func.id, call.lineno, tuple(name for _, name in after))
