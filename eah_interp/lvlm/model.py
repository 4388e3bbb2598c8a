"""A language model that sees, wrapped for tracing."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nnsight import TransformersModel
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.indices import check_integer
from eah_interp.lvlm.anatomy import (
    Anatomy,
    AttentionSite,
    check_settings,
    resolve_anatomy,
)
from eah_interp.lvlm.hook_points import HookedModel
from eah_interp.lvlm.inputs import (
    DEFAULT_PROMPT,
    Encoding,
    Row,
    are_prompts,
    cast_floats,
    encode_rows,
    has_images,
    image_placeholder,
    pair_rows,
)
from eah_interp.lvlm.prompt import INPUTS
from eah_interp.lvlm.remote import is_shipping, ship_package
from eah_interp.lvlm.runs import refuse_nan, stoppable, watched_run
from eah_interp.lvlm.spans import ImageSpan, find_spans
from eah_interp.lvlm.verify import verify_hook_points
from eah_interp.lvlm.weights import checking_weights

logger = logging.getLogger("eah_interp")

TASK = "image-text-to-text"


class LVLM(HookedModel):
    """nnsight's `TransformersModel`, with images as first-class inputs.

    `trace`, `generate`, `scan` and `tracer.invoke` take `(images, prompts)` beside
    everything that `TransformersModel` takes. Batches are one left-padded encoding.
    Use `eah_interp.load` and `eah_interp.wrap` to make one.

    Attributes:
        anatomy: Where the model keeps what interventions hook.
        verified: Whether its hook points were run and checked.
        loops_openly: Whether an edit of this model loops over every forward pass,
            however many there are. nnsight ends such a loop with a warning, which
            means nothing here and is not shown.
        patches: The interventions that `edit` has put into it, in their order.
        knows: What images a toy knows: logged where `describe` is given another.
    """

    anatomy: Anatomy
    knows: str = ""
    loops_openly = False
    patches: tuple[Any, ...] = ()

    def __init__(
        self,
        model: str | nn.Module,
        *args: Any,
        image_token_id: int | None = None,
        verify: bool = True,
        allow_missing: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load or wrap a model; `eah_interp.load` and `wrap` describe the arguments."""
        if image_token_id is not None:
            image_token_id = check_integer("image_token_id", image_token_id)
        self._image_token = image_token_id
        self._verify = verify
        self._allow_missing = allow_missing
        self.verified = False
        if not isinstance(model, str):
            # Refuse an unfit model before nnsight builds anything on it.
            resolve_anatomy(model, image_token=image_token_id)
        kwargs.setdefault("task", TASK)
        super().__init__(model, *args, **kwargs)
        self.anatomy = resolve_anatomy(self._module, image_token=image_token_id)
        if self.dispatched:
            self._check()

    # -- what it is ------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.anatomy.n_layers

    @property
    def n_heads(self) -> int:
        """Number of query heads in a layer."""
        return self.anatomy.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Number of key/value groups in a layer."""
        return self.anatomy.n_kv_heads

    @property
    def d_head(self) -> int:
        """Width of a head's queries and keys."""
        return self.anatomy.d_head

    def __repr__(self) -> str:
        """Show which interventions a patched twin carries, then the modules."""
        carried = "".join(f"patched by {patch}\n" for patch in self.patches)
        return carried + str(super().__repr__())

    def clear_edits(self) -> None:
        """Drop every edit, so that the model runs as it is."""
        super().clear_edits()
        self.patches = ()

    # -- loading ---------------------------------------------------------------------

    def dispatch(self) -> None:
        """Load the real weights, then verify the hook points on them."""
        if self.dispatched:
            return
        super().dispatch()
        self._check()

    def _load(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:
        with checking_weights(allow_missing=self._allow_missing):
            loaded: nn.Module = super()._load(repo_id, *args, **kwargs)
        return loaded

    def _check(self) -> None:
        if self._verify and not self.verified:
            verify_hook_points(self, self.anatomy)
            self.verified = True

    def _loaded_preprocessors(self) -> set[str]:
        # nnsight 0.8.1 reads this off the pipeline class; transformers 5.23 gives it
        # the class's name instead, so it would find none.
        return {"processor"}

    def _wrap(self, module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.processor is not None or self.repo_id:
            wrapped: nn.Module = super()._wrap(module, *args, **kwargs)
            return wrapped
        # transformers' factory insists on a processor; its pipeline class does not.
        from transformers.pipelines import ImageTextToTextPipeline

        self.pipeline = ImageTextToTextPipeline(
            model=module, processor=None, tokenizer=self.tokenizer, task=TASK
        )
        finished: nn.Module = self._finalize_pipeline()
        return finished

    # -- inputs ----------------------------------------------------------------------

    def encode(self, images: object, prompts: object = None) -> Encoding:
        """Encode images and prompts as one left-padded batch of model inputs.

        Args:
            images: An image, a list of images (a row each), or a list of lists.
            prompts: A prompt or a list of prompts; "Describe the image." when None.

        Returns:
            The model's inputs, on the CPU, floating-point ones in the model's dtype.

        Raises:
            InputError: If images cannot be read, or their number does not match the
                prompts'.
        """
        return self._encode_rows(self._rows((images, prompts)))

    def _rows(self, inputs: tuple[Any, ...]) -> list[Row]:
        images, prompts = inputs if len(inputs) == 2 else (inputs[0], None)
        placeholder = image_placeholder(self.processor)
        return pair_rows(images, prompts, placeholder=placeholder)

    def _encode_rows(self, rows: list[Row]) -> Encoding:
        placeholder = image_placeholder(self.processor)
        with unset_fake_temporarily():
            encoding = encode_rows(rows, self.processor, placeholder=placeholder)
        return cast_floats(encoding, self._module.dtype)

    def spans(self, encoding: Mapping[str, Any]) -> tuple[tuple[ImageSpan, ...], ...]:
        """Find each row's images in an encoding, with the patch grid of each.

        Args:
            encoding: What `encode` returned. A processor's own output does not know
                how large the images were, so where the processor crops, what its
                grids show is unknown.

        Returns:
            For each row, its image spans in order.

        Raises:
            InputError: If the tokens do not add up to the family's layout.
        """
        return find_spans(
            self._module.config,
            encoding,
            image_sizes=getattr(encoding, "image_sizes", None),
            processor=self.processor,
        )

    def check(self, settings: Any) -> list[AttentionSite]:
        """Check that an intervention's settings fit this model, without running it.

        Args:
            settings: `EAH`, `PAI`, or any other intervention.

        Returns:
            Where it acts, layer by layer.

        Raises:
            ModelError: If a layer has no attention to patch.
            SettingsError: If a layer or head does not exist, or these are no settings.
        """
        if not hasattr(settings, "find_sites"):
            msg = (
                "a patch is an intervention's settings, such as eah.EAH() or eah.PAI()"
                f": got {settings!r}"
            )
            raise SettingsError(msg)
        return check_settings(self, settings)

    # -- running ---------------------------------------------------------------------

    def trace(self, *inputs: Any, **kwargs: Any) -> Any:
        """Open a trace of one forward pass.

        Args:
            *inputs: `(images, prompts)`, `(images,)`, or anything that
                `TransformersModel.trace` takes: text, token ids, an encoding.
            **kwargs: As for `TransformersModel.trace`, `remote=` included.

        Raises:
            InputError: If images or prompts do not fit, before any forward pass.
        """
        inputs, kwargs = self._take_images(inputs, kwargs)
        if not kwargs.get("remote"):
            # Before the workers are set up, so that verification has its own run.
            self.dispatch()
        return super().trace(*inputs, **kwargs)

    def scan(self, *inputs: Any, **kwargs: Any) -> Any:
        """Open a trace that computes shapes only; arguments as for `trace`."""
        inputs, kwargs = self._take_images(inputs, kwargs)
        return super().scan(*inputs, **kwargs)

    def describe(
        self,
        images: object,
        prompts: object = DEFAULT_PROMPT,
        *,
        max_new_tokens: int = 64,
        **generate: Any,
    ) -> str | list[str]:
        """Generate an answer about an image, as text.

        Args:
            images: As for `encode`.
            prompts: As for `encode`.
            max_new_tokens: Longest answer, in tokens.
            **generate: Passed on to `generate`.

        Returns:
            The answer, or a list of answers where images or prompts are lists.

        Raises:
            InputError: As for `encode`.
            NumericalError: If the model's logits are NaN.
        """
        encoding = self.encode(images, prompts)
        self._say_what_it_knows(encoding)
        # First, so that a processor of the user's does not see NaN and pass it on.
        processors = [refuse_nan, *(generate.pop("logits_processor", None) or [])]
        found = self.generate(
            **encoding,
            max_new_tokens=max_new_tokens,
            logits_processor=processors,
            **generate,
        )
        ids = getattr(found, "sequences", found)  # return_dict_in_generate=True
        new = ids[:, encoding["input_ids"].shape[1] :]
        answers = [
            text.strip()
            for text in self.processor.batch_decode(new, skip_special_tokens=True)
        ]
        many = isinstance(images, list | tuple) or isinstance(prompts, list | tuple)
        return answers if many else answers[0]

    def _say_what_it_knows(self, encoding: Encoding) -> None:
        """Log, once, that words about images of another size mean nothing."""
        if not self.knows:
            return
        side = self._module.config.vision_config.image_size
        if any(size != (side, side) for size in encoding.image_sizes or ()):
            logger.warning(self.knows)
            self.knows = ""

    def interleave(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model with its workers, then see that promised patches happened."""
        with watched_run(self):
            return super().interleave(stoppable(self, fn), *args, **kwargs)

    def _take_images(
        self, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Encode `(images, prompts)` where that is what was given."""
        if len(inputs) > 2 or (len(inputs) == 2 and not are_prompts(inputs[1])):
            kinds = ", ".join(type(value).__name__ for value in inputs)
            msg = f"expected (images, prompts), got {len(inputs)} arguments: {kinds}"
            raise InputError(msg)
        if has_images(inputs):
            return (), {**self.encode(*inputs), **kwargs}
        return inputs, kwargs

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        if has_images(inputs):
            return len(self._rows(inputs))
        size: int = super()._batch_size(*inputs, **kwargs)
        return size

    def _batch(self, invokes: list[Any], fn: Any) -> tuple[Any, Any]:
        pictured = [has_images(inputs) for inputs, _ in invokes]
        if any(pictured):
            args, kwargs = self._batch_images(invokes, pictured)
        else:
            try:
                args, kwargs = super()._batch(invokes, fn)
            except NotImplementedError as error:
                msg = (
                    "encodings of several invokes cannot be joined: give each invoke "
                    "(images, prompts), or encode all rows and give them to trace"
                )
                raise UnsupportedError(msg) from error
        setattr(self.interleaver, INPUTS, kwargs)
        return args, kwargs

    def _batch_images(
        self, invokes: list[Any], pictured: list[bool]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Encode the images and prompts of several invokes as one batch."""
        if not all(pictured):
            msg = "give every invoke (images, prompts), or none: they share one forward"
            raise InputError(msg)
        rows: list[Row] = []
        forward: dict[str, Any] = {}
        for inputs, kwargs in invokes:
            rows += self._rows(inputs)
            forward.update(kwargs)
        return (), {**self._encode_rows(rows), **forward}

    # -- remote ----------------------------------------------------------------------

    def _remoteable_class(self) -> type:
        kind: type = TransformersModel
        return kind

    def _remote_backend(self, *args: Any, **kwargs: Any) -> Any:
        return ship_package(super()._remote_backend(*args, **kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel to a server as the `TransformersModel` that it knows, with names."""
        if not is_shipping():
            return super().__reduce_ex__(protocol)
        return object.__new__, (HookedModel,), self.__getstate__()
