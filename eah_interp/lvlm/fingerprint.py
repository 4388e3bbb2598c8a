"""A short name for a model's weights, so that what was found in it is not misused."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

N_READ = 65_536
"""Most numbers that are read of each parameter, evenly spaced."""

KNOWN = "_eah_weights"
"""Attribute of a module: its name, and which weights it was made of. It is kept there
and not beside it, since this travels to servers by value, with all that it refers to.
"""


def hash_weights(model: Any) -> str:
    """Name a model's weights by 16 hexadecimal digits.

    Of each parameter its shape and up to 65,536 numbers are read, rounded to bfloat16:
    the same checkpoint has the same name on any device, in float32 as in bfloat16,
    whatever its modules are called. Another seed, a further step of training or an
    adapter has another; in large models a change of a few numbers may go unseen.

    Args:
        model: A whole model, or the module of transformers that it wraps.

    Returns:
        The digits; empty where weights lie elsewhere (offloaded, not yet loaded).

    Example:
        >>> from eah_interp.testing import tiny_lvlm
        >>> one, same, other = (tiny_lvlm("llava", seed=seed) for seed in (0, 0, 1))
        >>> hash_weights(one) == hash_weights(same) != hash_weights(other)
        True
    """
    module: nn.Module = getattr(model, "_module", model)
    parameters = [p for p in module.parameters() if not p.is_meta]
    if len(parameters) < len(list(module.parameters())) or not parameters:
        return ""
    # Asked at every step of a run: read again only where a parameter was written to.
    written = tuple((p.data_ptr(), _version(p)) for p in parameters)
    known = vars(module).get(KNOWN)
    if known is None or known[0] != written:
        parts = sorted(_read(parameter) for parameter in parameters)
        known = (written, hashlib.sha256(b"".join(parts)).hexdigest()[:16])
        vars(module)[KNOWN] = known
    found: str = known[1]
    return found


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else int(parameter._version)


def _read(parameter: Tensor) -> bytes:
    flat = parameter.detach().flatten()
    if len(flat) > N_READ:
        places = torch.linspace(0, len(flat) - 1, N_READ, dtype=torch.float64)
        flat = flat[places.long().to(flat.device)]
    numbers = flat.to(torch.bfloat16).float().cpu().numpy().tobytes()
    return hashlib.sha256(str(tuple(parameter.shape)).encode() + numbers).digest()
