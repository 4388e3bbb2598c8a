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
        _KINDS[kind] = _read_call(kind)
    return _KINDS[kind]


def _read_call(kind: type[nn.Module]) -> CallSite | None:
    forward = inspect.unwrap(kind.forward)
    try:
        source = textwrap.dedent(read_source(forward))
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
    """Where one decoder layer attends.

    Attributes:
        layer: 0-based index in the decoder.
        layer_path: The decoder layer, as a dotted path from the root module.
        path: The attention module.
        out_proj: The output projection; None where no module follows the call.
    """

    layer: int
    layer_path: str
    path: str
    out_proj: str | None


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

    Args:
        model: A whole model, or the module of transformers that it wraps.

    Example:
        >>> from eah_interp.testing import tiny_lvlm
        >>> name_model(tiny_lvlm("llava"))
        'LlavaForConditionalGeneration (in memory)'
    """
    module = getattr(model, "_module", model)
    origin = getattr(getattr(module, "config", None), "name_or_path", "")
    return f"{type(module).__name__} ({PurePath(origin or 'in memory').name})"


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
    names = [
        name
        for name, line in source.compiled.lines.items()
        if wanted is not None
        and line == wanted.line
        and name.rpartition("_")[0] == wanted.variable
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
