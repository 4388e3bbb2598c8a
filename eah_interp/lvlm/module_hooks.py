"""What PyTorch hands to the hooks of decoder layers and of their components."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def first_output(output: Any) -> Any:
    """Return what a module adds or passes on; a tuple has it first.

    Example:
        >>> first_output(("stream", "pattern")), first_output("stream")
        ('stream', 'stream')
    """
    return output[0] if isinstance(output, tuple) else output


def hook_stream(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Any:
    """Look at the residual stream that enters a layer or a norm, or change it.

    Args:
        module: The layer or norm.
        see: Takes the stream, `[batch position d_model]`; what it returns enters the
            module instead, unless that is None.

    Returns:
        The handle that removes the hook.

    Example:
        >>> import torch
        >>> norm, seen = torch.nn.LayerNorm(2), []
        >>> handle = hook_stream(norm, seen.append)
        >>> _ = norm(torch.zeros(1, 3, 2))
        >>> handle.remove()
        >>> [tuple(stream.shape) for stream in seen]
        [(1, 3, 2)]
    """

    def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        del module
        stream = see(args[0] if args else kwargs["hidden_states"])
        if stream is None:
            return None
        if args:
            return (stream, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": stream}

    return module.register_forward_pre_hook(enter, with_kwargs=True)
