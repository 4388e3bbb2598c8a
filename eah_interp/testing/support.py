"""What the tests found of each family, as it was when the table was last made."""

import json
from pathlib import Path
from typing import Any

SUPPORT_FILE = Path(__file__).with_name("support.json")
"""Written by `docs/support/support_table.py` from test results."""


def read_support() -> dict[str, Any]:
    """Read the tested versions, and by family how it fared.

    Returns:
        `versions` by library, and `families`: by name and way of running it
        (`"eager"`, `"sdpa"`, `"transformer_lens"`) what came of it (`"exact"`).

    Example:
        >>> read_support()["families"]["llava"]["sdpa"]
        'exact'
    """
    found: dict[str, Any] = json.loads(SUPPORT_FILE.read_text())
    return found
