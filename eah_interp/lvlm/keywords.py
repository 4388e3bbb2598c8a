"""Names of what a run can be given: those of nnsight, the model, and `generate`."""

import ast
import inspect
import re
from collections.abc import Mapping
from typing import Any

import transformers as hf

from eah_interp.arguments import find_near
from eah_interp.errors import KeywordError, show_value

_UNUSED = re.compile(r"`model_kwargs` are not used by the model: (\[.*?\])")
_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")


def list_run_keywords(model: Any, *, generates: bool) -> frozenset[str]:
    """List the names of what a trace, or a generation, is known to read.

    Args:
        model: An LVLM.
        generates: Whether it generates.
    """
    named = {"images", "prompts"} | _names_of(type(model))
    processor = getattr(model, "processor", None)
    named |= set(getattr(processor, "model_input_names", None) or ())
    named |= set(hf.utils.TransformersKwargs.__annotations__)
    # What the whole model does not read by name, it hands on to the parts inside.
    path = model.anatomy.layers.split(".")
    for depth in range(len(path)):
        part = model._module.get_submodule(".".join(path[:depth]))
        named |= set(inspect.signature(type(part).forward).parameters)
    if generates:
        config = getattr(model._module, "generation_config", None)
        named |= set() if config is None else set(vars(config))
        named |= set(inspect.signature(type(model._module).generate).parameters)
        named |= set(hf.GenerationConfig().to_dict())
    return frozenset(named - {"self", "args", "kwargs", "inputs"})


def _names_of(kind: Any) -> frozenset[str]:
    """List what nnsight's tracing methods read by name."""
    methods = [
        vars(one)[name]
        for one in kind.__mro__
        for name in ("trace", "scan")
        if name in vars(one)
    ]
    listed = [inspect.signature(method).parameters for method in methods]
    remote = {"remote", "backend", "blocking", "job_id", "callback", "api_key"}
    return frozenset(remote.union(*listed))


def refuse_unused(error: Exception) -> None:
    """Raise what transformers says of a keyword that nobody reads by its name.

    Raises:
        KeywordError: If that is what it says.

    Example:
        >>> refuse_unused(ValueError("something else"))
    """
    said = _UNUSED.search(str(error))
    if said is None:
        return
    names = ast.literal_eval(said.group(1))
    known = set(hf.GenerationConfig().to_dict()) | {"images", "prompts"}
    near = {name: find_near(name, known) for name in names}
    hints = [f"{found} for {name}" for name, found in near.items() if found]
    meant = f" (did you mean {', '.join(hints)}?)" if hints else ""
    msg = (
        f"generate has no argument {', '.join(map(repr, names))}{meant}: it takes "
        "images, prompts, and what transformers' generate takes"
    )
    raise KeywordError(msg) from error


LOADING = (
    *("dtype", "device_map", "attn_implementation", "quantization_config"),
    *("revision", "trust_remote_code", "token", "cache_dir", "subfolder"),
    *("local_files_only", "force_download", "use_safetensors", "variant"),
    *("max_memory", "offload_folder", "config", "generation_config", "processor"),
    *("name_or_path", "verify", "image_token_id", "dispatch", "allow_missing"),
)
"""What loading is most often given; transformers has more, and the model's config."""


WRAPPING = (
    *("model", "processor", "verify", "image_token_id", "tokenizer"),
    *("image_processor", "feature_extractor", "video_processor", "task"),
    *("trust_remote_code", "revision", "allow_missing", "interleaver", "rename"),
)
"""What wrapping is given."""


def refuse_unexpected(error: Exception, given: Mapping[str, Any]) -> None:
    """Raise what a model's class says of a keyword of `load` that it does not know.

    Args:
        error: What was raised.
        given: The keywords that the user wrote.

    Raises:
        KeywordError: If that is what it says.
    """
    # transformers' pipeline raises what every class said as one text.
    said = _UNEXPECTED.search(str(error))
    if said is None or said.group(1) not in given:
        return
    name = said.group(1)
    near = find_near(name, LOADING)
    hint = f": did you mean {near}?" if near else ""
    msg = (
        f"load has no argument {name!r} (got {show_value(given[name])}){hint} It takes "
        f"{', '.join(LOADING)}, what else transformers' from_pretrained takes, and "
        "settings of the model's config"
    )
    raise KeywordError(msg) from error
