"""A language model that sees, wrapped for tracing."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, no_type_check, overload

import torch
from nnsight import TransformersModel
from nnsight.tracing.tracer import WithBlockNotFoundError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from eah_interp.arguments import by_name, check_count, check_flag, find_near
from eah_interp.errors import (
    InputError,
    KeywordError,
    SettingsError,
    UnsupportedError,
    show_value,
)
from eah_interp.indices import check_integer, to_int, to_ints
from eah_interp.lvlm.adapters import attaching, take_out
from eah_interp.lvlm.anatomy import (
    Anatomy,
    Site,
    check_settings,
    resolve_anatomy,
)
from eah_interp.lvlm.foreign_code import (
    TRUST,
    check_trust,
    never_asking,
    refuse_custom_generate,
)
from eah_interp.lvlm.hook_points import HookedModel
from eah_interp.lvlm.images import ImageLike
from eah_interp.lvlm.inputs import (
    Encoding,
    ManyImages,
    Row,
    are_many,
    are_prompts,
    cast_floats,
    check_encoding,
    check_layout,
    encode_rows,
    has_images,
    image_placeholder,
    join_images,
    leave_inference,
    pair_rows,
)
from eah_interp.lvlm.keywords import list_run_keywords, refuse_unused
from eah_interp.lvlm.masks import check_written_mask, with_padding_mask
from eah_interp.lvlm.messages import Messages
from eah_interp.lvlm.positions import check_positions
from eah_interp.lvlm.prompt import INPUTS, find_setting
from eah_interp.lvlm.refusals import (
    NAMED,
    check_generation,
    check_vocabulary,
    name_refusal,
)
from eah_interp.lvlm.remote import is_shipping, ship_package
from eah_interp.lvlm.runs import (
    LockedBackend,
    OneRunAtATime,
    find_lock,
    opens_block,
    plain_passes,
    refuse_nan,
    stoppable,
    watched_run,
)
from eah_interp.lvlm.same_layers import Forwards, check_same_layers, note_forwards
from eah_interp.lvlm.spans import ImageSpan, find_spans
from eah_interp.lvlm.verify import verify_hook_points
from eah_interp.lvlm.weights import as_dispatched, checking_weights, find_device

logger = logging.getLogger("eah_interp")

TASK = "image-text-to-text"


def _returning_it(name: str) -> Callable[..., Any]:
    """Call a method of the module that returns it, and return what wraps it."""

    @functools.wraps(getattr(nn.Module, name))
    def call(self: "LVLM", *args: Any, **kwargs: Any) -> "LVLM":
        getattr(self._module, name)(*args, **kwargs)
        return self

    call.__doc__ = f"Do as the module's `{name}`, and return what wraps the module."
    return call


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
        patches: The interventions that `edit` has put into it, in their order; those of
            the vision tower as `InTower(settings)`.
        knows: What images a toy knows: logged once, where it is given another.
        forwards: The code of its layers, as it was wrapped with it.
    """

    anatomy: Anatomy
    forwards: Forwards
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
        self._verify = check_flag("verify", verify)
        self._allow_missing = check_flag("allow_missing", allow_missing)
        self.verified = False
        if not isinstance(model, str):
            model = take_out(model)
            # Refuse an unfit model before nnsight builds anything on it.
            resolve_anatomy(model, image_token=image_token_id)
        kwargs.setdefault("task", TASK)
        kwargs.setdefault("interleaver", OneRunAtATime())
        # A wrapped model's too: its processor may be loaded from where it came from.
        kwargs[TRUST] = check_trust(kwargs.get(TRUST))
        with never_asking(str(model) if isinstance(model, str) else "the processor"):
            super().__init__(model, *args, **kwargs)
        self.anatomy = resolve_anatomy(self._module, image_token=image_token_id)
        self.forwards = note_forwards(self._module, self.anatomy)
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

    @property
    def device(self) -> torch.device:
        """The device that inputs go to, also where weights are kept on another."""
        return find_device(self._module)

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
        with self.alone():
            if not self.dispatched:
                with never_asking(str(self.repo_id)):
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

    def _load_meta(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:
        with attaching(self.peft):
            built: nn.Module = super()._load_meta(repo_id, *args, **kwargs)
        return built

    def _finalize_pipeline(self) -> nn.Module:
        with attaching(self.peft):
            module: nn.Module = super()._finalize_pipeline()
        # PEFT's new layers begin in training mode, dropout included.
        return module if self.peft is None else module.eval()

    def _wrap(self, module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        with as_dispatched(module):
            return self._wrap_whole(module, *args, **kwargs)

    def _wrap_whole(self, module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
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

    @by_name
    def encode(self, images: object, prompts: object = None) -> Encoding:
        """Encode images and prompts as one left-padded batch of model inputs.

        Args:
            images: An image, a list of images (a row each), or a list of lists; None,
                or left out, where the messages hold them.
            prompts: A prompt or a list of prompts; "Describe the image." when None. A
                prompt is a text, or a list of Hugging Face messages.

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
        # A tokenizer keeps its padding on itself, so two threads cannot share it.
        with self.alone(), unset_fake_temporarily(), torch.inference_mode(mode=False):
            encoding = encode_rows(rows, self.processor, placeholder=placeholder)
            self._say_what_it_knows(encoding)
            return cast_floats(encoding, self._module.dtype)

    @by_name
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
        if isinstance(encoding, Mapping) and "input_ids" in encoding:
            check_encoding(encoding)
        return find_spans(
            self._module.config,
            encoding,
            image_sizes=getattr(encoding, "image_sizes", None),
            processor=self.processor,
        )

    @by_name
    def check(self, settings: Any) -> list[Site]:
        """Check that an intervention's settings fit this model, without running it.

        Args:
            settings: `EAH`, `PAI`, or any other intervention.

        Returns:
            Where it acts, layer by layer.

        Raises:
            ModelError: If a layer has no attention to patch.
            SettingsError: If a layer or head does not exist, or these are no settings.
        """
        return check_settings(self, settings)

    # -- running ---------------------------------------------------------------------

    def alone(self) -> Any:
        """Return the lock that keeps other threads from running the model meanwhile.

        Every run takes it by itself, in its twins too. Take it where hooks of your own
        are on the model: `with model.alone(): ...`.
        """
        return find_lock(self._module)

    def trace(self, *inputs: Any, **kwargs: Any) -> Any:
        """Open a trace of one forward pass.

        Args:
            *inputs: `(images, prompts)`, `(images,)`, or anything that
                `TransformersModel.trace` takes: text, token ids, an encoding.
            **kwargs: `images=` and `prompts=` (or `image=`, `prompt=`, `text=`,
                `question=`), and what `TransformersModel.trace` takes, `remote=`
                included.

        Raises:
            InputError: If images or prompts do not fit, before any forward pass.
            KeywordError: If a name is next to one that is known, as `imgs=` to
                `images=`.
        """
        inputs, kwargs = self._take_images(inputs, kwargs)
        if not kwargs.get("remote"):
            # Before the workers are set up, so that verification has its own run.
            self.dispatch()
            kwargs.setdefault("backend", LockedBackend(self.alone()))
        return super().trace(*inputs, **kwargs)

    def scan(self, *inputs: Any, **kwargs: Any) -> Any:
        """Open a trace that computes shapes only; arguments as for `trace`."""
        inputs, kwargs = self._take_images(inputs, kwargs)
        kwargs.setdefault("backend", LockedBackend(self.alone()))
        return super().scan(*inputs, **kwargs)

    @overload
    def describe(
        self,
        images: ImageLike | Messages,
        prompts: str | Messages | None = None,
        *,
        max_new_tokens: int = 64,
        **generate: Any,
    ) -> str: ...

    @overload
    def describe(
        self,
        images: ManyImages | Sequence[Messages],
        prompts: object = None,
        *,
        max_new_tokens: int = 64,
        **generate: Any,
    ) -> list[str]: ...

    @overload
    def describe(
        self,
        images: ImageLike | None,
        prompts: list[str] | tuple[str, ...] | Sequence[Messages],
        *,
        max_new_tokens: int = 64,
        **generate: Any,
    ) -> list[str]: ...

    @by_name
    def describe(
        self,
        images: object = None,
        prompts: object = None,
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
            UnsupportedError: In a trace of the model.
            SettingsError: If `max_new_tokens` is no number of 1 or more, several
                answers to a prompt are asked for, or `generate` refuses another
                setting.
            KeywordError: If `generate` has no such setting.
        """
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        if self.interleaver.interleaving:
            msg = (
                "describe runs the model, which is running: a trace of it is open; "
                "call it before or after that `with`, or describe in place of the "
                "trace, with eah.edit for a patch"
            )
            raise UnsupportedError(msg)
        check_generation(generate)
        several = find_setting(self, generate, "num_return_sequences")
        if several is not None and several != 1:
            msg = (
                f"describe returns one answer a prompt, got num_return_sequences="
                f"{show_value(several)}: call generate, which returns so many rows for "
                "each prompt, and decode them with processor.batch_decode"
            )
            raise SettingsError(msg)
        encoding = self.encode(images, prompts)
        inputs = {**encoding, **generate}  # as in a trace: a mask may be another
        found = self.generate(**inputs, max_new_tokens=max_new_tokens)
        ids = getattr(found, "sequences", found)  # return_dict_in_generate=True
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers = [
            text.strip()
            for text in self.processor.batch_decode(new, skip_special_tokens=True)
        ]
        return answers if are_many(images, prompts) else answers[0]

    @no_type_check  # its caller's frame is read, and a checker's would stand between
    def generate(self, *inputs: Any, **kwargs: Any) -> Any:
        """Generate token ids, or open a trace of a generation, as nnsight's does.

        `with model.generate(...):` is a trace. Everywhere else it generates, also in
        the body of a `with` that is written on one line, which nnsight alone takes
        for a trace: `with torch.no_grad(): ids = model.generate(...)`.

        Args:
            *inputs: As for `trace`.
            **kwargs: As for `trace`, and what transformers' `generate` takes.

        Returns:
            The ids, prompt included; in a `with`, the tracer.

        Raises:
            InputError: As for `trace`.
            KeywordError: As for `trace`.
            NumericalError: If the model's logits are NaN.
        """
        plain = inspect.unwrap(TransformersModel.generate).__get__(self, type(self))
        if self.interleaver.interleaving:
            return plain(*inputs, **kwargs)
        tracer = self.trace(*inputs, fn=plain, **kwargs)
        try:
            tracer.capture()
        except WithBlockNotFoundError:
            _check_there(inputs, kwargs)
            return self.interleave(plain, *inputs, **kwargs)
        if opens_block(tracer.node, sys._getframe(1)):
            return tracer
        _check_there(inputs, kwargs)
        return self.interleave(plain, *inputs, **kwargs)

    def __call__(self, *inputs: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Run the model once, outside of any trace: a twin of `edit` is patched there.

        Args:
            *inputs: What the model's forward takes; of a twin, as for `trace`.
            hook: As nnsight has it, in a trace.
            **kwargs: The same.

        Returns:
            What the forward returns.

        Raises:
            InputError: As for `trace`, of a twin.
        """
        if hook or self.interleaver.interleaving or not self._edits:
            return super().__call__(*inputs, hook=hook, **kwargs)
        inputs, kwargs = self._take_images(inputs, kwargs)
        self.dispatch()
        return self.interleave(self._module, *inputs, **kwargs)

    @property
    def forward(self) -> Callable[..., Any]:
        """The module's forward; of a twin of `edit`, the patched one."""
        run: Callable[..., Any] = self if self._edits else self._module.forward
        return run

    eval = _returning_it("eval")
    train = _returning_it("train")
    requires_grad_ = _returning_it("requires_grad_")
    half = _returning_it("half")
    bfloat16 = _returning_it("bfloat16")
    float = _returning_it("float")
    double = _returning_it("double")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Refuse a copy, which would be hooked where the original is.

        Raises:
            UnsupportedError: Always.
        """
        msg = (
            "a wrapped model cannot be copied: its copy's modules would not be those "
            "that are hooked; copy the model itself and wrap that: "
            "eah_interp.wrap(copy.deepcopy(model._module), model.processor)"
        )
        raise UnsupportedError(msg)

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
        refuse_custom_generate(kwargs)
        check_same_layers(self)
        with self.alone(), watched_run(self), plain_passes(self):
            try:
                return super().interleave(stoppable(self, fn), *args, **kwargs)
            except NAMED as error:
                refuse_unused(error)
                if (named := name_refusal(error, self.processor)) is None:
                    raise
                raise named from error

    def _take_images(
        self, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Encode `(images, prompts)` where that is what was given."""
        inputs, kwargs = join_images(inputs, kwargs)
        self._check_names(kwargs)
        if len(inputs) > 2 or (len(inputs) == 2 and not are_prompts(inputs[1])):
            kinds = ", ".join(type(value).__name__ for value in inputs)
            msg = f"expected (images, prompts), got {len(inputs)} arguments: {kinds}"
            raise InputError(msg)
        for name, value in kwargs.items():
            check_layout(name, value)
        if has_images(inputs):
            encoding = self.encode(*inputs)
            given = {**encoding, **kwargs}
            tensors = any(isinstance(value, Tensor) for value in kwargs.values())
            if tensors or kwargs.keys() & encoding.keys():
                check_encoding(given)
            return (), given
        for one in inputs:
            if isinstance(one, Mapping):
                check_encoding(one)
            else:
                check_layout("input_ids", one)
        if "input_ids" in kwargs:
            check_encoding(kwargs)
        if len(inputs) == 1 and not _is_taken(inputs[0]):
            got = show_value(inputs[0])
            msg = (
                f"expected (images, prompts), text, token ids or an encoding, got {got}"
            )
            raise InputError(msg)
        return inputs, kwargs

    def _check_names(self, given: Mapping[str, Any]) -> None:
        """Refuse a keyword that is misspelt: a forward takes any, and ignores it.

        Raises:
            KeywordError: If one is unknown and next to one that is known.
        """
        # An encoding's tensors may be called what no signature has.
        ready = [word for word, value in given.items() if isinstance(value, Tensor)]
        words = [w for w in given if w != "fn" and not (w in ready and "_" in w)]
        if not words:
            return
        running = given.get("fn")
        name = running if isinstance(running, str) else getattr(running, "__name__", "")
        known = list_run_keywords(self, generates=name == "generate")
        for word in words:
            if word in known:
                continue
            near = find_near(word, ("images",) if word in ready else known)
            if near is not None:
                what = "generate" if name == "generate" else "trace"
                msg = f"{what} has no argument {word!r}: did you mean {near}?"
                raise KeywordError(f"{msg} {_TAKES[what]}")

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        inputs, kwargs = join_images(inputs, kwargs)
        if has_images(inputs):
            return len(self._rows(inputs))
        size: int = super()._batch_size(*inputs, **kwargs)
        return size

    def _batch(self, invokes: list[Any], fn: Any) -> tuple[Any, Any]:
        invokes = [join_images(inputs, kwargs) for inputs, kwargs in invokes]
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
        name = fn if isinstance(fn, str) else getattr(fn, "__name__", "")
        generates = name == "generate"
        if generates:
            check_generation(kwargs)
            kwargs = with_padding_mask(self, kwargs)
            # First, so that a processor of the user's does not see NaN and pass it on.
            processors = [refuse_nan, *(kwargs.get("logits_processor") or [])]
            kwargs = {**kwargs, "logits_processor": processors}
        kwargs = leave_inference(kwargs)
        check_written_mask(kwargs.get("attention_mask"), self)
        check_vocabulary(self, kwargs)
        check_positions(self, kwargs, generates=generates)
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


_TAKES = {
    "trace": "It takes images, prompts, and what the model's forward takes",
    "generate": "It takes images, prompts, and what transformers' generate takes",
}


def _check_there(inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a generation outside of a trace, which has no invokes, has inputs."""
    given, rest = join_images(inputs, kwargs)
    if not given and not rest.keys() & {"input_ids", "inputs_embeds", "inputs"}:
        named = ", ".join(kwargs) or "nothing"
        msg = f"expected (images, prompts), text, token ids or an encoding, got {named}"
        raise InputError(msg)


def _is_taken(value: object) -> bool:
    """Whether nnsight takes a value in the place of images: text, ids, an encoding."""
    if isinstance(value, list | tuple):
        kinds = {str if isinstance(item, str) else type(item) for item in value}
        return len(kinds) == 1 and all(map(_is_taken_item, value))
    return isinstance(value, str | Tensor | Mapping)


def _is_taken_item(value: object) -> bool:
    ids = isinstance(value, list | tuple) and to_ints(value) is not None
    whole = to_int(value) is not None
    return ids or whole or isinstance(value, str | Tensor | Mapping)
