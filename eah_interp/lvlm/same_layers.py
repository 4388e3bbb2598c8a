"""Layers as they were when a model was wrapped: a run looks at them, and no others.

nnsight mirrors a model's modules, and compiles their forwards, when it is wrapped.
What is put in their places afterwards runs beside that mirror: a layer that was added
is never patched, one that was moved is patched by its old number, and a forward that
was replaced in its class is not called.
"""

from typing import Any

from torch import nn

from eah_interp.errors import ModelError
from eah_interp.lvlm.anatomy import Anatomy, envoy_at

Forwards = dict[type, Any]
"""The forward of each class of layers and attention modules."""


def note_forwards(root: nn.Module, anatomy: Anatomy) -> Forwards:
    """Note the code of a model's layers, to see later whether it was replaced."""
    modules = [root.get_submodule(path) for path in _list_paths(anatomy)]
    return {type(_bare(one)): type(_bare(one)).forward for one in modules}


def check_same_layers(model: Any) -> None:
    """Check that a model has the layers, and their code, that it was wrapped with.

    Other weights, and other projections inside of an attention module (LoRA), are no
    other layers; nor is a layer that `torch.compile` took in.

    Args:
        model: The LVLM.

    Raises:
        ModelError: If layers were added, dropped, moved or replaced, or a class has
            another forward.
    """
    anatomy, root = model.anatomy, model._module
    listed = root.get_submodule(anatomy.layers)
    found = ""
    if len(listed) != anatomy.n_layers:
        found = f"{len(listed)} layers, and had {anatomy.n_layers}"
    for path in () if found else _list_paths(anatomy):
        module = _find(root, path)
        known = envoy_at(model, path)._module
        if module is None or _bare(module) is not _bare(known):
            found = f"another module at {path} than"
        elif model.forwards.get(kind := type(_bare(module))) is not kind.forward:
            found = f"another forward in {kind.__name__} ({path}) than"
        if found:
            break
    if found:
        msg = (
            f"the model has {found} when it was wrapped: patches and readings would go "
            "by the layers as they were then; change layers (or their classes) first, "
            "and wrap the model after that, with eah_interp.wrap(model, processor)"
        )
        raise ModelError(msg)


def _list_paths(anatomy: Anatomy) -> list[str]:
    layers = [f"{anatomy.layers}.{index}" for index in range(anatomy.n_layers)]
    return [*layers, *(site.path for site in anatomy.sites.values())]


def _find(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _bare(module: nn.Module) -> nn.Module:
    """Return what `torch.compile` made a module of."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module
