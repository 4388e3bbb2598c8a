"""Errors of this package: one family, each child also a builtin a stranger would catch.

A message says what was expected, what was found, and what to do about it. Whether an
error of somebody else's means that memory ran out is told here too.
"""


class EAHError(Exception):
    """Base of every error that `eah_interp` raises on purpose."""


class InputError(EAHError, ValueError):
    """An image, prompt, mask or encoding does not fit what was asked of it."""


class SettingsError(EAHError, ValueError):
    """A setting has an impossible value: a mode, layer, head, threshold or share."""


class ModelError(EAHError, LookupError):
    """A model cannot be worked on: a hook point is missing, or is not what it seems."""


class UnsupportedError(EAHError, RuntimeError):
    """What was asked for is not possible here, and a wrong number would be worse."""


class NumericalError(EAHError, ArithmeticError):
    """A tensor holds NaN or infinite values where numbers were expected."""


class ExtraMissingError(EAHError, ImportError):
    """An optional package is not installed; the message names the extra that has it."""


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "defaultcpuallocator",
)
"""What allocators say in a plain RuntimeError: torch's on the CPU has no class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, of the machine or a device.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory"))
        True
        >>> is_out_of_memory(ValueError("out of memory"))
        False
    """
    # Here, not above: the command line names its errors without waiting for torch.
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in said for sign in _NO_MEMORY)
