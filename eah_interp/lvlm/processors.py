"""Processors of families whose video half needs a package that is not installed."""

import re
from pathlib import Path
from typing import Any

import transformers as hf
from transformers import PreTrainedTokenizerBase, ProcessorMixin

IMAGES_ONLY = ("image_processor", "tokenizer")


def drop_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return a subclass of a processor class that takes pictures and text only.

    The video processors of transformers need torchvision; a processor class that wants
    one cannot be built, or loaded, without it. The subclass keeps the name, so that
    what it saves is loaded by the full class where torchvision is installed.

    Args:
        processor_class: Any processor class, such as `transformers.Qwen2VLProcessor`.
    """
    names = [name for name in processor_class.get_attributes() if name in IMAGES_ONLY]
    body = {
        "get_attributes": classmethod(lambda cls: names),  # noqa: ARG005, is inherited
        "__module__": processor_class.__module__,
        "__doc__": processor_class.__doc__,
    }
    return type(processor_class.__name__, (processor_class,), body)


def load_processor(
    path: str | Path, **kwargs: Any
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load a processor, without its video half where that cannot be loaded.

    The real processor with all of its parts is tried first. Where a model type has
    none, as that of a text decoder, transformers gives its tokenizer.

    Args:
        path: Folder or name on the Hub.
        **kwargs: What `from_pretrained` takes.
    """
    try:
        return hf.AutoProcessor.from_pretrained(path, **kwargs)
    except (ImportError, OSError) as error:
        if not re.search("video ?processor", str(error), re.IGNORECASE):
            raise
        settings, _ = ProcessorMixin.get_processor_dict(path, **kwargs)
        config = hf.AutoConfig.from_pretrained(path, **kwargs)
        named = settings.get("processor_class")
        name = named or getattr(config, "processor_class", None)
        if name is None:  # there is no processor here at all
            raise
    return drop_video(getattr(hf, name)).from_pretrained(path, **kwargs)
