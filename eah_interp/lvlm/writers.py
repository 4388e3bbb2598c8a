"""What a decoder layer adds to its residual stream, read off its forward's source.

A layer returns its input plus what its attention and its MLP add. What they add is not
always what the modules of these names return: Gemma 2 and GLM-4V put a norm between,
Inkling 2 a convolution, OPT has no MLP module at all. So the forward is followed,
statement by statement, as this layer runs it: which module made each summand. What
cannot be followed is left out, never guessed; `verify.py` runs the sums.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from eah_interp.sources import read_source


@dataclass(frozen=True)
class Writers:
    """Which modules of a decoder layer return what is added to the residual stream.

    Attributes:
        attention: Of the attention, as a path within the layer; None where no module
            returns it, or the layer does not attend.
        mlp: Of the MLP or the experts; None where no module returns it.
        instead: Of what the layer has instead of attention (linear attention, a
            convolution); None where it attends.
        adds_up: Whether the layer returns its input plus these two, and nothing else.
        side_by_side: Whether the MLP reads what enters the layer (Cohere), and not the
            sum of that and what attention adds.
    """

    attention: str | None = None
    mlp: str | None = None
    instead: str | None = None
    adds_up: bool = False
    side_by_side: bool = False


UNKNOWN = Writers()


def find_writers(layer: nn.Module, *, attention: str | None) -> Writers:
    """Find what a decoder layer adds to the stream.

    Args:
        layer: The layer.
        attention: Name of its attention module; None where it has none, and the first
            summand is that of what it has instead.

    Returns:
        The modules, as far as the forward's source tells.

    Example:
        >>> from eah_interp.testing import tiny_lvlm
        >>> layer = tiny_lvlm("gemma3").model.language_model.layers[0]
        >>> find_writers(layer, attention="self_attn").attention
        'post_attention_layernorm'
    """
    follower = _Follower(layer)
    try:
        result = follower.run()
    except (_LostTrack, OSError, TypeError, SyntaxError):
        return UNKNOWN
    if result is None:
        return UNKNOWN
    summands = list(result.summands)
    if attention is None:
        mixer = summands[0] if summands else None
    else:
        mixer = next((part for part in summands if attention in part.through), None)
    others = [
        part
        for part in summands
        if part is not mixer and not _attends(layer, part, mixer)
    ]
    mlp = others[0] if mixer is not None and others else None
    return Writers(
        attention=None if attention is None else follower.name_of(mixer),
        mlp=follower.name_of(mlp),
        instead=None if attention is not None else follower.name_of(mixer),
        adds_up=result.of_stream
        and not result.changed
        and len(summands) == 2
        and all(follower.name_of(part) for part in summands),
        side_by_side=mlp is not None
        and follower.name_of(mlp) is not None
        and mixer not in follower.reads[mlp.through[0]],
    )


@dataclass(frozen=True)
class _Summand:
    """Something that was added: the modules it came through, and who returned it."""

    through: tuple[str, ...]
    last: str | None


def _attends(layer: nn.Module, summand: _Summand, mixer: _Summand | None) -> bool:
    """Tell whether a summand comes from an attention of its own: cross-attention."""
    before = () if mixer is None else mixer.through
    own = [name for name in summand.through if name not in before]
    kinds = [type(layer.get_submodule(name)).__name__ for name in own]
    return any(kind.endswith("Attention") for kind in kinds)


@dataclass(frozen=True)
class _Flow:
    """What a variable holds: the stream or not, plus summands; scaled, or as it was."""

    of_stream: bool = False
    summands: tuple[_Summand, ...] = ()
    changed: bool = False


class _LostTrack(Exception):  # noqa: N818 - ends the search, never seen outside
    """Raised where a forward goes ways that its source alone does not tell."""


_SAME = frozenset(
    ("clone", "contiguous", "float", "reshape", "squeeze", "to", "type", "type_as")
) | {"unsqueeze", "view", "view_as"}
"""Methods of a tensor that leave its numbers as they are."""


class _Follower:
    """Follows one layer's forward, with the flags that this layer has."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.known: dict[str, _Flow] = {}
        self.calls: list[str] = []
        self.reads: dict[str, tuple[_Summand, ...]] = {}
        self.scope: dict[str, Any] = {}
        self.returned: _Flow | None = None
        self.ended = False

    def run(self) -> _Flow | None:
        """Follow the forward to its return, and say what comes out."""
        forward = inspect.unwrap(type(self.layer).forward)
        tree = ast.parse(textwrap.dedent(read_source(forward))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise OSError("its source is no function")
        parameters = list(inspect.signature(forward).parameters.values())
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.scope = {**forward.__globals__, **defaults, "self": self.layer}
        self.known = {parameters[1].name: _Flow(of_stream=True)}
        self.follow(tree.body)
        return self.returned

    def name_of(self, summand: _Summand | None) -> str | None:
        """Name the module that returned a summand, if it is called for nothing else."""
        if summand is None or summand.last is None:
            return None
        return summand.last if self.calls.count(summand.last) == 1 else None

    def follow(self, body: list[ast.stmt]) -> None:
        """Follow statements in their order, up to a return."""
        for statement in body:
            if self.ended:
                return
            if isinstance(statement, ast.If):
                holds = self.holds(statement.test)
                self.follow(statement.body if holds else statement.orelse)
            elif isinstance(statement, ast.With):
                self.follow(statement.body)
            else:
                self.step(statement)

    def step(self, statement: ast.stmt) -> None:
        """Follow one plain statement."""
        if isinstance(statement, ast.Return):
            self.returned = self.value(statement.value)
            self.ended = True
        elif isinstance(statement, ast.Assign):
            flow = self.value(statement.value)
            for target in statement.targets:
                self.assign(target, flow)
        elif isinstance(statement, ast.AnnAssign):
            self.assign(statement.target, self.value(statement.value))
        elif isinstance(statement, ast.AugAssign):
            old, new = self.value(statement.target), self.value(statement.value)
            self.assign(statement.target, self.combine(statement.op, old, new))
        elif isinstance(statement, ast.Expr):
            if self.value(statement.value) is not None:  # something done in place
                raise _LostTrack
        elif not isinstance(statement, ast.Assert | ast.Raise):
            raise _LostTrack

    def holds(self, test: ast.expr) -> bool:
        """Evaluate a condition as this layer has it, by its flags and by defaults."""
        names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
        if names & set(self.known):
            raise _LostTrack
        code = compile(ast.Expression(test), "<condition>", "eval")
        try:
            return bool(eval(code, self.scope))  # the model's own source
        except Exception as error:
            raise _LostTrack from error

    def assign(self, target: ast.expr, flow: _Flow | None) -> None:
        """Note what a variable holds from here on."""
        if isinstance(target, ast.Tuple | ast.List):
            for index, part in enumerate(target.elts):
                self.assign(part, flow if index == 0 else None)
        elif isinstance(target, ast.Name):
            self.known.pop(target.id, None)
            self.scope.pop(target.id, None)  # no parameter at its default any more
            if flow is not None:
                self.known[target.id] = flow

    def value(self, node: ast.expr | None) -> _Flow | None:
        """Say what an expression holds; None where nothing of the stream is in it."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Tuple):
            return self.value(node.elts[0]) if node.elts else None
        if isinstance(node, ast.Subscript):
            whole = self.value(node.value)
            first = isinstance(node.slice, ast.Constant) and node.slice.value == 0
            return whole if first else _change(whole)
        if isinstance(node, ast.BinOp):
            return self.combine(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self.holds(node.test) else node.orelse)
        if isinstance(node, ast.Call):
            return self.call(node)
        return None

    def combine(
        self, op: ast.operator, left: _Flow | None, right: _Flow | None
    ) -> _Flow | None:
        """Add two things up; any other operation changes what it is given."""
        if left is None and right is None:
            return None
        if not isinstance(op, ast.Add) or left is None or right is None:
            return _change(left if right is None else right if left is None else left)
        return _Flow(
            left.of_stream or right.of_stream,
            left.summands + right.summands,
            left.changed or right.changed or (left.of_stream and right.of_stream),
        )

    def call(self, node: ast.Call) -> _Flow | None:
        """Follow a call: of a module of the layer, or of a function."""
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        flows = [flow for flow in map(self.value, arguments) if flow is not None]
        name = self.child(node.func)
        if name is not None:
            self.calls.append(name)
            self.reads[name] = flows[0].summands if flows else ()
            module = self.layer.get_submodule(name)
            if isinstance(module, nn.Dropout | nn.Identity):
                return flows[0] if flows else None
            through = () if not flows or flows[0].of_stream else _through(flows[0])
            return _Flow(summands=(_Summand((*through, name), name),))
        if isinstance(node.func, ast.Attribute):
            own = self.value(node.func.value)
            if own is not None:
                return own if node.func.attr in _SAME else _change(own)
            if node.func.attr == "dropout":
                return flows[0] if flows else None
        return _change(flows[0]) if flows else None

    def child(self, node: ast.expr) -> str | None:
        """Name the layer's module that `self.name(...)` calls."""
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return None
        if node.value.id != "self":
            return None
        module = getattr(self.layer, node.attr, None)
        return node.attr if isinstance(module, nn.Module) else None


def _through(flow: _Flow) -> tuple[str, ...]:
    return tuple(name for summand in flow.summands for name in summand.through)


def _change(flow: _Flow | None) -> _Flow | None:
    """Note that something was done to it: no module returns what it is now."""
    if flow is None:
        return None
    if flow.of_stream:  # the whole stream was scaled: what was added before, was
        return replace(flow, changed=True)
    lost = tuple(replace(summand, last=None) for summand in flow.summands)
    return _Flow(summands=lost, changed=True)
