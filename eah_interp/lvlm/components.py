"""What besides attention stands between the residual stream and the logits."""

from torch import nn

from eah_interp.lvlm.anatomy import Anatomy
from eah_interp.lvlm.dispatch import attention_call_of


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
    named = "norm" in type(module).__name__.lower()
    return named and not isinstance(module, nn.Embedding)
