"""What a study file may say, as pydantic models; made when the first one is read."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from eah_interp.errors import ExtraMissingError


@functools.cache
def make_base() -> Any:
    """Make the model that all others extend: it refuses keys that it does not know.

    Raises:
        ExtraMissingError: If pydantic is not installed.
    """
    try:
        from pydantic import BaseModel, model_validator
        from pydantic_core import PydanticCustomError
    except ImportError as error:
        msg = "study files need pydantic: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error

    class Strict(BaseModel):
        @model_validator(mode="before")
        @classmethod
        def refuse_unknown(cls, values: Any) -> Any:
            if not isinstance(values, Mapping):
                raise PydanticCustomError("no_mapping", "keys with values", {})
            known = ", ".join(cls.model_fields)
            for key in values:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", f"one of the keys {known}", {"key": key}
                    )
            return values

    return Strict


@functools.cache
def make_study_schema() -> Any:
    """Make the model of a whole study file; conditions are left to their kinds."""
    base = make_base()
    import pydantic
    from pydantic import Field, PositiveInt

    create_model: Any = pydantic.create_model

    samplings = list[Literal["random", "popular", "adversarial"]]
    limit: Any = (PositiveInt | None, None)
    model = create_model(
        "Model",
        __base__=base,
        name=(str, "toy"),
        dtype=(Literal["float32", "bfloat16", "float16", "auto"] | None, None),
        device_map=(str | None, None),
        attn_implementation=(str | None, None),
        revision=(str | None, None),
    )
    toy = create_model(
        "Toy",
        __base__=base,
        source=(Literal["toy"], ...),
        n_scenes=(PositiveInt, ...),
        split=(Literal["train", "validation", "test"], "test"),
        questions=(bool, True),
        captions=(bool, True),
        samplings=(samplings, ["random", "popular", "adversarial"]),
    )
    pope = create_model(
        "Pope",
        __base__=base,
        source=(Literal["pope"], ...),
        questions=(str, ...),
        images=(str, ...),
        suffix=(str, ""),
        kind=(str, ""),
        limit=limit,
    )
    captions = create_model(
        "Captions",
        __base__=base,
        source=(Literal["captions"], ...),
        images=(str | list[str], ...),
        prompt=(str, "Describe the image."),
        limit=limit,
    )
    decoding = create_model(
        "Decoding",
        __base__=base,
        yes_no=(dict[str, Any], {}),
        caption=(dict[str, Any], {}),
    )
    source: Any = Field(discriminator="source")
    return create_model(
        "StudyFile",
        __base__=base,
        model=(model, Field(default_factory=model)),
        items=(_list_of(Annotated[toy | pope | captions, source]), Field(min_length=1)),
        conditions=(list[Any], Field(min_length=1)),
        decoding=(decoding, Field(default_factory=decoding)),
        batch_size=(PositiveInt, 32),
        sinks=(bool, False),
        seed=(int, 0),
    )


def _list_of(kind: Any) -> Any:
    return list[kind]
