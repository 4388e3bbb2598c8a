"""Errors of this package: one family, each child also a builtin a stranger would catch.

A message says what was expected, what was found, and what to do about it.
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
