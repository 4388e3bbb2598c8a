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


class KeywordError(SettingsError, TypeError):
    """A function does not have that argument, or lacks one; it says what it has."""


class ModelError(EAHError, LookupError):
    """A model cannot be worked on: a hook point is missing, or is not what it seems."""


class UnsupportedError(EAHError, RuntimeError):
    """What was asked for is not possible here, and a wrong number would be worse."""


class NumericalError(EAHError, ArithmeticError):
    """A tensor holds NaN or infinite values where numbers were expected."""


class ExtraMissingError(EAHError, ImportError):
    """An optional package is not installed; the message names the extra that has it."""


_LONGEST = 200


def show_value(value: object) -> str:
    """Write a value for a message: on one line, not too long, whatever it holds.

    Example:
        >>> show_value("a" * 500)[-30:]
        'aaaaaaaaaaaaaaaaaaaaaaaaaaa...'
        >>> show_value(-(10**5000)), show_value([1, 2])
        ('an integer of 16610 bits', '[1, 2]')
    """
    if isinstance(value, int) and value.bit_length() > 10_000:
        # Python refuses to write it: more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a list or an array of such an integer
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


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
