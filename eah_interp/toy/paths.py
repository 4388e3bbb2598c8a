"""Where the committed weights lie."""

from importlib import resources
from pathlib import Path


def toy_path() -> Path:
    """Return the folder of the toy's weights, tokenizer and processor.

    It loads with plain transformers as well: `from_pretrained(toy_path())`.

    Example:
        >>> (toy_path() / "config.json").name
        'config.json'
    """
    return Path(str(resources.files("eah_interp.toy"))) / "weights"
