"""The one file that knows module paths: where a model keeps what we hook.

Every hook point is resolved by what it is, never by a number in its name: the
decoder layers are the `ModuleList` under `get_decoder()` with as many elements as the
text config has layers; the attention call is the call of the variable that was
assigned from transformers' `ALL_ATTENTION_FUNCTIONS`; the output projection is the
last module called after. What is resolved here is then run and checked in `verify.py`.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from torch import nn

from eah_interp.errors import EAHError, ModelError, SettingsError, show_value
from eah_interp.indices import to_int
from eah_interp.lvlm.adapters import is_adapted
from eah_interp.lvlm.spans import image_token_id
from eah_interp.lvlm.writers import Writers, find_writers
from eah_interp.sources import read_source

# ---- Finding the attention call in a forward's source, by what it is.


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
        _KINDS[kind] = find_attention_call(_read_forward(kind))
    return _KINDS[kind]


def _read_forward(kind: type[nn.Module]) -> str:
    """Read the source of a class's forward; empty where it has none."""
    try:
        return textwrap.dedent(read_source(inspect.unwrap(kind.forward)))
    except (OSError, TypeError):
        return ""


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
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    dispatch = _dispatched(tree, calls)
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


def _dispatched(tree: ast.AST, calls: list[ast.Call]) -> list[ast.Call]:
    """List the calls of what was taken from the registry."""
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
    return [
        node
        for node in calls
        if isinstance(node.func, ast.Name) and node.func.id in variables
    ]


@dataclass(frozen=True)
class PackedCallSite:
    """Where a forward calls its attention for one packed sequence after the other.

    Vision towers that pack images (Qwen-VL's) split queries, keys and values, call
    their attention in a loop over the parts, and join what it returns; but for
    FlashAttention, which they call once.

    Attributes:
        call: Name and line of the variable that is called.
        splits: Of the variable that holds what was split.
        joined: Of the call that joins, its dots as underscores.
    """

    call: tuple[str, int]
    splits: tuple[str, int]
    joined: tuple[str, int]


_PACKED: dict[str, PackedCallSite | None] = {}

_PACKED_KINDS: dict[type[nn.Module], PackedCallSite | None] = {}


def packed_call_of(kind: type[nn.Module]) -> PackedCallSite | None:
    """Find the looped attention call in a class's forward, reading its source once."""
    if kind not in _PACKED_KINDS:
        _PACKED_KINDS[kind] = find_packed_call(_read_forward(kind))
    return _PACKED_KINDS[kind]


def find_packed_call(source: str) -> PackedCallSite | None:
    """Find the looped attention call in a forward's source, parsing each once."""
    if source not in _PACKED:
        _PACKED[source] = _parse_packed(source) if REGISTRY in source else None
    return _PACKED[source]


def _parse_packed(source: str) -> PackedCallSite | None:
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    dispatch = _dispatched(tree, calls)
    found = []
    for loop in ast.walk(tree):
        if not isinstance(loop, ast.For | ast.ListComp):
            continue
        inside = [node for node in ast.walk(loop) if node in dispatch]
        over = loop.iter if isinstance(loop, ast.For) else loop.generators[0].iter
        names = {
            node.value.id
            for node in ast.walk(over)
            if isinstance(node, ast.Starred) and isinstance(node.value, ast.Name)
        }
        if len(inside) == 1 and len(names) == 1:
            found.append((loop, inside[0], names.pop()))
    if len(found) != 1:
        return None
    loop, call, name = found[0]
    splits = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == name
        and node.lineno < loop.lineno
    ]
    joined = [
        (node.lineno, ast.unparse(node.func).replace(".", "_"))
        for node in calls
        if node.lineno > (loop.end_lineno or loop.lineno)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "cat"
    ]
    if not splits or not joined:
        return None
    assert isinstance(call.func, ast.Name)
    line, cat = min(joined)
    return PackedCallSite((call.func.id, call.lineno), (name, max(splits)), (cat, line))


# ---- Models that cannot be worked on, told by their config alone.


_SIGHT = ("vision_config", "vq_config", "image_token_id", "image_token_index")


def refuse_config(
    config: Any,
    name: str,
    *,
    image_token: int | None = None,
) -> None:
    """Refuse a model by its config alone, before its weights are read.

    Args:
        config: A transformers config.
        name: What to call the model in the message.
        image_token: The image token's id, if the user names one.

    Raises:
        ModelError: If it is an encoder-decoder, sees by cross-attention, or is blind.
    """
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(
        text, "is_encoder_decoder", False
    ):
        msg = (
            f"{name} is an encoder-decoder: its decoder reads the image through "
            "cross-attention, so there are no image columns to score or broadcast; "
            "use a decoder-only LVLM"
        )
        raise ModelError(msg)
    if getattr(text, "cross_attention_layers", None):
        msg = (
            f"{name} reads the image through cross-attention layers: there are no "
            "image columns in its self-attention to score or broadcast; use an LVLM "
            "that puts image tokens into the prompt"
        )
        raise ModelError(msg)
    if image_token is None and not any(
        getattr(config, key, None) is not None for key in _SIGHT
    ):
        msg = (
            f"{name} is a text-only model: its config has no vision part and no image "
            "token; pass a vision-language model, or image_token_id=... if images "
            "enter it some other way"
        )
        raise ModelError(msg)


@dataclass(frozen=True)
class AttentionSite:
    """Where one layer attends.

    Attributes:
        layer: 0-based index in the decoder, or in the vision tower.
        layer_path: The layer, as a dotted path from the root module.
        path: The attention module.
        out_proj: The output projection; None where no module follows the call, or in
            the vision tower.
        is_packed: Whether it attends in a loop over packed sequences.
    """

    layer: int
    layer_path: str
    path: str
    out_proj: str | None
    is_packed: bool = False


@dataclass(frozen=True)
class StreamSite:
    """Where the residual stream of a decoder layer can be changed.

    Attributes:
        layer: 0-based index in the decoder.
        place: `"input"`: what enters the layer; `"mlp"`: what its MLP or experts add;
            `"layer"`: what the layer returns; `"vision"`: what the vision tower
            returns, long before layer 0.
    """

    layer: int
    place: Literal["vision", "input", "mlp", "layer"]


Site = AttentionSite | StreamSite
"""Where an intervention acts in a layer."""


@dataclass(frozen=True)
class Anatomy:
    """Where a language model that sees keeps its parts, as dotted paths.

    Attributes:
        sites: The attention of each layer that can be worked on, by layer.
        unfit: Why each other layer cannot, by layer.
        n_layers: Number of decoder layers.
        n_heads: Query heads of a layer.
        n_kv_heads: Key/value groups of a layer.
        d_head: Width of a head's queries and keys.
        layers: The decoder layers.
        final_norm: The norm after the last layer.
        unembedding: The output embedding.
        image_token_id: The id that stands where an image's features go; None where
            the model has none and every call must say where its images are.
        writers: Which modules return what each layer adds to the residual stream.
        vision_layers: The layers of the vision tower; None where there are none.
        n_vision_layers: Number of these.
        vision_output: The last of these that is read by what follows the tower.
        tower: The same of the vision tower's layers, as if they were a decoder's; None
            where there are none.
        checked: The tower's layers whose attention was seen to be explained by its
            call, with the backend; see `verify_tower_call`.
        edges: How many tokens of the tower stand before and after an image's patches,
            once that was asked for; see `count_edges`.
    """

    sites: dict[int, AttentionSite]
    unfit: dict[int, str]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    layers: str
    final_norm: str | None
    unembedding: str | None
    image_token_id: int | None
    writers: dict[int, Writers] = field(default_factory=dict)
    vision_layers: str | None = None
    n_vision_layers: int = 0
    vision_output: int | None = None
    tower: "Anatomy | None" = None
    checked: set[tuple[int, str]] = field(default_factory=set)
    edges: list[tuple[int, int]] = field(default_factory=list)

    def site(self, layer: int) -> AttentionSite:
        """Find a layer's attention, or say why it cannot be worked on.

        Raises:
            SettingsError: If the decoder has no such layer.
            ModelError: If the layer is of a kind that has no heads to patch.
        """
        index = to_int(layer)
        if index is None or not 0 <= index < self.n_layers:
            msg = (
                f"layer {show_value(layer)} does not exist: expected 0 to "
                f"{self.n_layers - 1}, counted from 0; name the layers, as in "
                "EAH(layers=(1,))"
            )
            raise SettingsError(msg)
        if index in self.unfit:
            fit = ", ".join(map(str, self.sites)) or "none"
            msg = (
                f"layer {index} cannot be patched: {self.unfit[index]}; "
                f"layers that can: {fit}"
            )
            raise ModelError(msg)
        return self.sites[index]

    def stream_site(self, layer: int, place: Literal["mlp", "layer"]) -> StreamSite:
        """Find where a layer writes to the stream, or say why it cannot be worked on.

        Raises:
            SettingsError: If the decoder has no such layer.
            ModelError: If no module of the layer returns what its MLP adds.
        """
        index = to_int(layer)
        if index is None or not 0 <= index < self.n_layers:
            msg = (
                f"layer {layer!r} does not exist: expected 0 to {self.n_layers - 1}, "
                "counted from 0"
            )
            raise SettingsError(msg)
        if place == "mlp" and self.writers[index].mlp is None:
            msg = (
                f"layer {index} cannot be steered at its MLP: no module of it returns "
                "what its MLP adds to the residual stream; steer what the layer "
                'returns, at="stream"'
            )
            raise ModelError(msg)
        return StreamSite(index, place)


def resolve_anatomy(model: nn.Module, *, image_token: int | None = None) -> Anatomy:
    """Find the hook points of a transformers model, without running it.

    Args:
        model: A decoder-only `...ForConditionalGeneration` of transformers; weights
            may still be on the meta device.
        image_token: The image token's id, where the config does not name it.

    Returns:
        The paths of its parts.

    Raises:
        ModelError: If the model cannot be worked on; the message says why.

    Example:
        >>> from eah_interp.testing import tiny_lvlm
        >>> anatomy = resolve_anatomy(tiny_lvlm("llava", n_layers=2))
        >>> anatomy.sites[1].out_proj
        'model.language_model.layers.1.self_attn.o_proj'
    """
    text = _text_config(model, image_token)
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.get_decoder()  # type: ignore[operator]
    n_layers = int(text.num_hidden_layers)
    layers_path, layers = _find_layers(model, decoder, names, n_layers)
    sites: dict[int, AttentionSite] = {}
    unfit: dict[int, str] = {}
    writers: dict[int, Writers] = {}
    for index, layer in enumerate(layers):
        path = f"{layers_path}.{index}"
        found = [
            name for name, m in layer.named_modules() if attention_call_of(type(m))
        ]
        if len(found) > 1:  # what mixes layers, not tokens, has no place in the cache
            cached = [n for n in found if hasattr(layer.get_submodule(n), "layer_idx")]
            found = cached or found
        if found == ["self_attn"]:
            attention = layer.get_submodule("self_attn")
            call = attention_call_of(type(attention))
            assert call is not None
            children = dict(attention.named_children())
            # gates and norms may stand between the call and the projection
            after = [name for name in call.modules_after if name in children]
            proj = after[-1] if after else None
            sites[index] = AttentionSite(
                layer=index,
                layer_path=path,
                path=f"{path}.self_attn",
                out_proj=None if proj is None else f"{path}.self_attn.{proj}",
            )
        else:
            unfit[index] = _why_unfit(layer, found)
        attends = "self_attn" if index in sites else None
        writers[index] = find_writers(layer, attention=attends)
    if not sites:
        msg = f"no decoder layer can be patched: {next(iter(unfit.values()))}"
        raise ModelError(msg)
    attention = model.get_submodule(next(iter(sites.values())).path)
    n_heads, n_kv_heads, d_head = _head_counts(attention, text)
    parent = model.get_submodule(layers_path.rpartition(".")[0])
    prefix = layers_path.rpartition(".")[0]
    norms = [
        name
        for name, _ in parent.named_children()
        if "norm" in name and "per_layer" not in name  # Gemma 4 has norms before it
    ]
    unembedding = model.get_output_embeddings()  # type: ignore[operator]
    vision_layers = _find_vision_layers(model, names)
    n_vision_layers = (
        len(model.get_submodule(vision_layers)._modules) if vision_layers else 0
    )
    return Anatomy(
        sites=sites,
        unfit=unfit,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        layers=layers_path,
        final_norm=f"{prefix}.{norms[-1]}" if norms else None,
        unembedding=names.get(id(unembedding)),
        image_token_id=_image_token(model, image_token),
        writers=writers,
        vision_layers=vision_layers,
        n_vision_layers=n_vision_layers,
        vision_output=_find_vision_output(model.config, n_vision_layers),
        tower=None if vision_layers is None else _resolve_tower(model, vision_layers),
    )


def _resolve_tower(model: nn.Module, path: str) -> Anatomy:
    """Find where the layers of the vision tower attend.

    What writes to its stream is found when it is asked for (`Anatomy.writers` is empty
    here): no other model is to wait for it.
    """
    sites: dict[int, AttentionSite] = {}
    unfit: dict[int, str] = {}
    layers = list(model.get_submodule(path).children())
    for index, layer in enumerate(layers):
        once, packed = (
            [name for name, part in layer.named_modules() if find(type(part))]
            for find in (attention_call_of, packed_call_of)
        )
        found = once + packed
        if len(found) == 1:
            where = f"{path}.{index}"
            attention = f"{where}.{found[0]}"
            sites[index] = AttentionSite(index, where, attention, None, bool(packed))
        else:
            unfit[index] = _why_tower_unfit(layer, found)
    n_heads = 0
    if sites:
        first = model.get_submodule(next(iter(sites.values())).path)
        config: Any = model.config.vision_config  # type: ignore[union-attr]
        names = ("num_heads", "num_attention_heads")
        given = [getattr(owner, n, None) for owner in (first, config) for n in names]
        n_heads = next((int(n) for n in given if n), 0)
    return Anatomy(
        sites=sites,
        unfit=unfit,
        n_layers=len(layers),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=0,
        layers=path,
        final_norm=None,
        unembedding=None,
        image_token_id=None,
    )


def _why_tower_unfit(layer: nn.Module, found: list[str]) -> str:
    if found:
        return f"expected one attention module, got {', '.join(found)}"
    kinds = [
        type(part).__name__
        for part in layer.modules()
        if part is not layer and "Attention" in type(part).__name__
    ]
    named = ", ".join(kinds) or f"none among {type(layer).__name__}'s modules"
    return (
        f"its attention ({named}) is computed by code of its own, and not by a call of "
        f"transformers' {REGISTRY}"
    )


def check_model(model: Any) -> Any:
    """Check that a model is a whole one, as `load` and `wrap` make it.

    Raises:
        ModelError: If it is only a part of one, or something else.
    """
    if getattr(model, "anatomy", None) is None:
        where = getattr(model, "path", type(model).__name__)
        msg = (
            f"expected a model of eah_interp.load or eah_interp.wrap, got {where}: "
            "pass the whole model, not one of its modules"
        )
        raise ModelError(msg)
    return model


def name_model(model: Any) -> str:
    """Name a model in what is kept of it: its class, and where it was loaded from.

    A twin of `edit` is named with what patches it: numbers that were measured in it are
    not those of the model.

    Args:
        model: A whole model, or the module of transformers that it wraps.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import tiny_lvlm
        >>> model = eah.wrap(tiny_lvlm("llava"))
        >>> name_model(model)
        'LlavaForConditionalGeneration (in memory)'
        >>> name_model(eah.edit(model, eah.EAH()))
        'LlavaForConditionalGeneration (in memory), patched by EAH'
    """
    patches = vars(model).get("patches", ())  # an envoy finds what its module has too
    by = "".join(f"{PATCHED}{_name_patch(one)}" for one in patches)
    return f"{name_unpatched(model)}{by}"


PATCHED = ", patched by "
"""What stands in a model's name between it and each of its patches."""


def name_unpatched(model: Any) -> str:
    """Name a model as `name_model` does, without what `edit` has put into it."""
    module = getattr(model, "_module", model)
    origin = getattr(getattr(module, "config", None), "name_or_path", "")
    return f"{type(module).__name__} ({PurePath(origin or 'in memory').name})"


def _name_patch(patch: Any) -> str:
    inner = getattr(patch, "settings", None)  # of a patch in the vision tower
    if inner is None:
        return type(patch).__name__
    return f"{type(inner).__name__} in the vision tower"


def check_settings(model: Any, settings: Any) -> list[Site]:
    """Check that an intervention's settings fit a model, before any forward pass.

    Args:
        model: A whole model, as `load` and `wrap` make it.
        settings: What says in which layers and heads it acts.

    Returns:
        Where it acts, in the order of a forward pass.

    Raises:
        ModelError: If the model is only a part of one, or a layer has no attention.
        SettingsError: If a layer or head does not exist, these are no settings, or
            what they hold was found in another model.
    """
    anatomy = check_model(model).anatomy
    if not hasattr(settings, "find_sites"):
        msg = (
            "a patch is an intervention's settings, such as eah.EAH() or eah.PAI()"
            f": got {show_value(settings)}"
        )
        raise SettingsError(msg)
    config = model.config.get_text_config(decoder=True)
    settings.check_fits(n_heads=anatomy.n_heads, d_model=config.hidden_size)
    for value in vars(settings).values():
        if hasattr(value, "_check_belongs"):  # found in a model, and only true of it
            value._check_belongs(model)
    found: list[Site] = settings.find_sites(anatomy)
    if settings.acts_on_streams:
        # Stable: within a layer the attention comes before what follows it.
        streams = settings.find_streams(anatomy)
        doors = [site for site in streams if site.place in ("vision", "input")]
        rest = [site for site in streams if site.place not in ("vision", "input")]
        found = sorted([*doors, *found, *rest], key=lambda site: site.layer)
    return found


def envoy_at(root: Any, path: str) -> Any:
    """Walk a dotted path from nnsight's root envoy to a module's envoy."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def attention_operation(root: Any, site: AttentionSite) -> Any:
    """Reach a layer's attention call in nnsight, as a source operation.

    Of the operations that nnsight finds in the forward, it is the one on the line
    of the call; the number in its name is never read.

    Raises:
        ModelError: If nnsight's view of the forward has no such operation.
    """
    source = envoy_at(root, site.path).source
    wanted = find_attention_call(source.compiled.source)
    place = None if wanted is None else (wanted.variable, wanted.line)
    return _operation_at(source, place, site)


def packed_operations(root: Any, site: AttentionSite) -> tuple[Any, Any, Any]:
    """Reach a looped attention call in nnsight: what is split, each call, what joins.

    Raises:
        ModelError: As for `attention_operation`.
    """
    source = envoy_at(root, site.path).source
    wanted = find_packed_call(source.compiled.source)
    splits, call, joined = (
        _operation_at(source, None if wanted is None else getattr(wanted, name), site)
        for name in ("splits", "call", "joined")
    )
    return splits, call, joined


def _operation_at(
    source: Any, place: tuple[str, int] | None, site: AttentionSite
) -> Any:
    """Find the one operation of a name on a line of a forward."""
    names = [
        name
        for name, line in source.compiled.lines.items()
        if place is not None and (name.rpartition("_")[0], line) == place
    ]
    if len(names) != 1:
        msg = (
            f"the attention call of {site.path} was not found in nnsight's view of its "
            f"forward: expected 1 operation, got {len(names)}; this pair of nnsight "
            "and transformers versions is not supported"
        )
        raise ModelError(msg)
    return getattr(source, names[0])


def _text_config(model: nn.Module, image_token: int | None) -> Any:
    name = type(model).__name__
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_decoder"):
        msg = (
            f"{name} is not a transformers model: expected a config and get_decoder(); "
            "load it with transformers, or wrap its language model"
        )
        raise ModelError(msg)
    refuse_config(config, name, image_token=image_token)
    return config.get_text_config(decoder=True)


def _image_token(model: nn.Module, given: int | None) -> int | None:
    if given is not None:
        return given
    try:
        return image_token_id(model.config)
    except EAHError:
        return None


def _find_layers(
    model: nn.Module, decoder: nn.Module, names: dict[int, str], n_layers: int
) -> tuple[str, nn.ModuleList]:
    lists: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            lists.append((name.count("."), names[id(module)], module))
    for _, path, layers in sorted(lists, key=lambda found: found[0]):
        if any(attention_call_of(type(m)) for m in layers.modules()):
            return path, layers
    msg = (
        f"{type(model).__name__} has no list of {n_layers} decoder layers that attend "
        f"through transformers' {REGISTRY}; models with attention of their own "
        "cannot be patched at the attention call"
    )
    raise ModelError(msg)


def _find_vision_layers(model: nn.Module, names: dict[int, str]) -> str | None:
    """Find the vision tower's layers: a list as long as its config says, that attends.

    The tower is what was built from the model's `vision_config`.
    """
    config = getattr(model.config, "vision_config", None)
    if config is None:
        return None
    n_layers = getattr(config, "num_hidden_layers", None)
    lists = [
        names[id(module)]
        for tower in model.modules()
        if isinstance(getattr(tower, "config", None), type(config))
        for module in tower.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and any("Attention" in type(part).__name__ for part in module.modules())
    ]
    return min(lists, key=lambda path: path.count("."), default=None)


_READ_LAYERS = ("vision_feature_layer", "vision_feature_layers", "feature_layer")
"""What configs call the layers of the tower that are read, where it is not the last."""


def _find_vision_output(config: Any, n_layers: int) -> int | None:
    """Find the last layer of the tower that is read; None where none is.

    Configs count as transformers' `hidden_states` do: 0 is what enters the first layer,
    and -1 what leaves the last.
    """
    holders = (config, getattr(config, "vision_config", None))
    named = [getattr(holder, name, None) for holder in holders for name in _READ_LAYERS]
    for given in named:
        several = given if isinstance(given, list | tuple) else [given]
        read = [to_int(layer) for layer in several if layer is not None]
        if not read or None in read:
            continue
        last = max(layer % (n_layers + 1) for layer in read if layer is not None)
        return last - 1 if last else None
    return n_layers - 1 if n_layers else None


def _why_unfit(layer: nn.Module, found: list[str]) -> str:
    if not found:
        kinds = ", ".join(type(child).__name__ for child in layer.children())
        return (
            "it has no attention call (a linear-attention, convolution or "
            f"cross-attention layer: {kinds})"
        )
    return f"expected one attention module named self_attn, got {', '.join(found)}"


def _head_counts(attention: nn.Module, text: Any) -> tuple[int, int, int]:
    """Read the head counts from the module; the config only where it is silent."""
    d_head = int(
        getattr(attention, "qk_head_dim", 0)  # latent attention: wider than its values
        or getattr(attention, "head_dim", 0)
        or getattr(text, "head_dim", None)
        or text.hidden_size // text.num_attention_heads
    )
    n_heads = int(text.num_attention_heads)
    groups = getattr(attention, "num_key_value_groups", None)
    if groups is None:
        return n_heads, int(getattr(text, "num_key_value_heads", n_heads)), d_head
    return n_heads, n_heads // int(groups), d_head


def walk_sites(anatomy: Anatomy) -> Iterator[AttentionSite]:
    """Yield the attention sites in the order that a forward pass reaches them."""
    yield from (anatomy.sites[layer] for layer in sorted(anatomy.sites))


# ---- What besides attention stands between the residual stream and the logits.


def norm_paths(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """List the norms between what a component writes and the logits.

    Those are the norms of the decoder, of its layers, and of attention modules between
    the call and the output projection.
    """
    parent = anatomy.layers.rpartition(".")[0]
    owners = [parent, *_layer_paths(model, anatomy)]
    paths = [
        f"{owner}.{name}"
        for owner in owners
        for name, child in model.get_submodule(owner).named_children()
        if _is_norm(child)
    ]
    for site in anatomy.sites.values():
        attention = model.get_submodule(site.path)
        call = attention_call_of(type(attention))
        after = () if call is None else call.modules_after
        paths += [
            f"{site.path}.{name}"
            for name, child in attention.named_children()
            if name in after and _is_norm(child)
        ]
    return paths


def block_paths(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """List what else computes in decoder layers: MLPs, experts, linear attention."""
    attentions = {site.path for site in anatomy.sites.values()}
    return [
        f"{owner}.{name}"
        for owner in _layer_paths(model, anatomy)
        for name, child in model.get_submodule(owner).named_children()
        if f"{owner}.{name}" not in attentions
        and not _is_norm(child)
        and not isinstance(child, nn.Dropout | nn.Identity)
    ]


def _layer_paths(model: nn.Module, anatomy: Anatomy) -> list[str]:
    names = [name for name, _ in model.get_submodule(anatomy.layers).named_children()]
    return [f"{anatomy.layers}.{name}" for name in names]


def _is_norm(module: nn.Module) -> bool:
    if is_adapted(module):  # by a trained copy, or by layers of its own
        return any(_is_norm(child) for child in module.children())
    named = "norm" in type(module).__name__.lower()
    return named and not isinstance(module, nn.Embedding)
