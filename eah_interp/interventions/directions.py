"""Directions in the residual stream, and those that an image adds to a prompt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eah_interp.arguments import by_name, check_flag, check_mapping
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_integer
from eah_interp.interventions.head_lists import check_origin
from eah_interp.lvlm.anatomy import check_model, name_model
from eah_interp.lvlm.fingerprint import hash_weights
from eah_interp.lvlm.inputs import Encoding, is_encoding, repeat_rows
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.without_images import drop_images
from eah_interp.results import ModelResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDING = 1e-5
"""What rounding alone may change in float32, in units of the whole, and more."""


@dataclass(frozen=True, eq=False, repr=False)
class Directions(ModelResult):
    """A direction in the residual stream for every layer, found in a model.

    Attributes:
        values: One row for all items, or a row for each; float32, on the CPU.
        layers: The decoder layer of each.
        per_item: Whether each item has a row of its own.
        weights: `hash_weights` of the model; empty where it is not known.

    Raises:
        SettingsError: If the numbers are not finite, or there is not one direction for
            each layer.
    """

    values: Float[Tensor, "row layer d_model"]
    layers: tuple[int, ...]
    per_item: bool = False
    weights: str = ""

    def __post_init__(self) -> None:
        values = self.values
        right = isinstance(values, Tensor) and values.ndim == 3
        if not right or values.shape[1] != len(self.layers):
            got = tuple(values.shape) if isinstance(values, Tensor) else values
            msg = (
                f"values must be [row, {len(self.layers)} layers, d_model], got "
                f"{show_value(got)}"
            )
            raise SettingsError(msg)
        if not self.per_item and len(values) != 1:
            msg = (
                f"expected one row for all items, got {len(values)}: per_item=True "
                "where each item has its own"
            )
            raise SettingsError(msg)
        if not bool(values.isfinite().all()):
            msg = "directions must be finite numbers: one is NaN or infinite"
            raise SettingsError(msg)
        object.__setattr__(self, "values", values.detach().float().cpu())
        object.__setattr__(self, "layers", tuple(map(int, self.layers)))
        # Asked of it at every step of a generation.
        object.__setattr__(self, "_placed", {})

    # Not public: methods of results that are do not travel to servers.
    def _at(self, layer: int, device: torch.device) -> Float[Tensor, "row d_model"]:
        """Look up a layer's direction, on a device."""
        key = (layer, device)
        if key not in self._placed:  # type: ignore[attr-defined]
            index = self.layers.index(layer)
            self._placed[key] = self.values[:, index].to(device)  # type: ignore[attr-defined]
        found: Tensor = self._placed[key]  # type: ignore[attr-defined]
        return found

    def of_item(self, item: int) -> "Directions":
        """Take one item's row; all of it where there is one for all."""
        if not self.per_item:
            return self
        return Directions(
            self.values[item : item + 1],
            self.layers,
            per_item=True,
            weights=self.weights,
            model=self.model,
        )

    def _check_belongs(self, model: Any) -> None:
        """Check that a model is the one that the directions were found in.

        Raises:
            SettingsError: If it is another.
        """
        check_origin(
            "these directions",
            model,
            name=self.model,
            weights=self.weights,
            remedy="find them in this model: find_directions(model, images, prompts)",
        )

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold; `from_dict` reads it."""
        return {
            "values": self.values.tolist(),
            "layers": list(self.layers),
            "per_item": self.per_item,
            "weights": self.weights,
            "model": self.model,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Directions":
        """Read what `to_dict` wrote.

        Raises:
            SettingsError: If it is something else.
        """
        given = dict(check_mapping("directions", values))
        unknown = set(given) - {"values", "layers", "per_item", "weights", "model"}
        if unknown or not {"values", "layers"} <= set(given):
            msg = (
                "directions have values, layers, per_item, weights and model, got "
                f"{', '.join(map(str, given)) or 'nothing'}"
            )
            raise SettingsError(msg)
        try:
            given["values"] = torch.tensor(given["values"], dtype=torch.float32)
            given["layers"] = tuple(map(int, given["layers"]))
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"directions must be lists of numbers: {error}"
            raise SettingsError(msg) from error
        return cls(**given)

    def frame(self) -> "pd.DataFrame":
        """List the directions, one row for each item and layer.

        Returns:
            Columns `item layer norm`; `item` is missing where there is one for all.
        """
        import pandas as pd

        norms = self.values.norm(dim=-1)
        rows = [
            (item if self.per_item else None, layer, float(norms[item, index]))
            for item in range(len(norms))
            for index, layer in enumerate(self.layers)
        ]
        table = pd.DataFrame(rows, columns=["item", "layer", "norm"])
        return table.astype({"item": "Int64", "layer": "int64", "norm": "float64"})

    def _about(self) -> str:
        n_rows, n_layers, d_model = self.values.shape
        whose = f"{n_rows} items" if self.per_item else "all items"
        return f"a direction of {d_model} numbers in {n_layers} layers, of {whose}"

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the length of every direction, by item and layer.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_values

        norms = self.values.norm(dim=-1)
        title = "length of directions"
        return plot_values(norms, title=title, rows="item", columns="layer", ax=ax)


@by_name
def find_directions(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    per_item: bool = False,
    batch_size: int = 8,
    progress: bool = False,
) -> Directions:
    """Find what an image adds to the residual stream at a prompt's last token.

    Of each item and layer the difference `d` between what the layer returns with the
    image and without it (`drop_images`). For all items the direction is that of VISTA
    (Li et al., arXiv:2502.03628): the differences of all layers laid in one line, their
    mean plus their first principal component, a vector of length one whose sign is
    that of the item which it says most of. An item alone has its difference, no more.

    Args:
        model: An LVLM that no edit has patched.
        images: An image or images; or a ready-made encoding.
        prompts: A prompt or prompts; "Describe the image." when None.
        per_item: Whether each item gets a direction of its own.
        batch_size: Most items in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Directions of every decoder layer.

    Raises:
        InputError: If images or prompts do not fit, or a row has no image.
        SettingsError: If the batch size is below 1.
        UnsupportedError: If the model is a patched twin.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> images = [random_image(0), random_image(1)]
        >>> found = find_directions(eah.load(), images, "Describe the image.")
        >>> found.per_item, found.values.shape[0]
        (False, 1)
    """
    per_item = check_flag("per_item", per_item)
    differences = measure_images(
        model, images, prompts, batch_size=batch_size, progress=progress
    )
    values = differences if per_item else join_directions(differences)[None]
    return Directions(
        values,
        tuple(range(model.anatomy.n_layers)),
        per_item=per_item,
        weights=hash_weights(model),
        model=name_model(model),
    )


def measure_images(
    model: Any, images: object, prompts: object, *, batch_size: int, progress: bool
) -> Float[Tensor, "item layer d_model"]:
    """Measure what each item's image changes in what layers return, at its last token.

    Where the image has not reached the last token (a first layer that convolves, or
    attends to a window), two runs of unlike length differ by rounding alone; such a
    difference is zero here, since steering would give it a length.

    Args:
        model: An LVLM that no edit has patched.
        images: As for `find_directions`.
        prompts: The same.
        batch_size: Most items in one forward pass.
        progress: Whether to show a bar.

    Raises:
        InputError: If images or prompts do not fit, or a row has no image.
        UnsupportedError: If the model is a patched twin.
    """
    parts = [
        subtract(_read_last(model, seen), _read_last(model, unseen))
        for seen, unseen in pair_runs(
            model, images, prompts, batch_size=batch_size, progress=progress
        )
    ]
    return torch.cat(parts)


def subtract(
    seen: Float[Tensor, "item layer d_model"],
    unseen: Float[Tensor, "item layer d_model"],
) -> Float[Tensor, "item layer d_model"]:
    """Subtract what layers return, in float32; what rounding alone can make is zero.

    Example:
        >>> one = torch.ones(1, 2, 4)
        >>> subtract(one, one * torch.tensor([[[1 + 1e-6], [0.5]]])).norm(dim=-1)
        tensor([[0., 1.]])
    """
    least = max(ROUNDING, 2 * torch.finfo(seen.dtype).eps)
    seen, unseen = seen.float(), unseen.float()
    found = seen - unseen
    told = found.norm(dim=-1) > least * seen.norm(dim=-1)
    return found.where(told[..., None], 0.0)


def pair_runs(
    model: Any, images: object, prompts: object, *, batch_size: int, progress: bool
) -> Iterator[tuple[Encoding, Encoding]]:
    """Yield batches of inputs with their images and without them.

    Args:
        model: An LVLM that no edit has patched.
        images: As for `find_directions`.
        prompts: The same.
        batch_size: Most items in a batch.
        progress: Whether to show a bar over items.

    Raises:
        InputError: If images or prompts do not fit, or a row has no image.
        SettingsError: If the batch size is below 1, or `progress` is no switch.
        UnsupportedError: If the model is a patched twin.
    """
    size = check_integer("batch_size", batch_size, least=1)
    progress = check_flag("progress", progress)
    whole = encode_plain(model, images, prompts)
    n_items = len(whole["input_ids"])
    if n_items == 0:
        raise InputError("expected at least 1 item, got none")
    with tqdm(total=n_items, desc="items", disable=not progress) as bar:
        for start in range(0, n_items, size):
            items = range(start, min(start + size, n_items))
            seen = whole if len(items) == n_items else repeat_rows(whole, list(items))
            yield seen, drop_images(model, seen)
            bar.update(len(items))


def encode_plain(model: Any, images: object, prompts: object) -> Encoding:
    """Encode what is asked of a model that no edit has patched.

    Raises:
        ModelError: If it is no whole model.
        InputError: If images or prompts do not fit.
        UnsupportedError: If the model is a patched twin.
    """
    check_model(model)
    if getattr(model, "_edits", None):
        msg = (
            "the model is a patched twin, as `edit` returns it: what is found in its "
            "runs would be the patch's too; pass the model itself"
        )
        raise UnsupportedError(msg)
    if is_encoding(images):
        return images if isinstance(images, Encoding) else Encoding(images)
    encoding: Encoding = model.encode(images, prompts)
    return encoding


def find_last(encoding: Mapping[str, Any]) -> Tensor:
    """Find the position of each row's last token."""
    ids = encoding["input_ids"]
    mask = find_tokens(encoding.get("attention_mask"), ids)
    places = torch.arange(1, ids.shape[1] + 1, device=mask.device)
    last: Tensor = (mask * places).amax(1).cpu() - 1
    return last


def _read_last(model: Any, encoding: Encoding) -> Float[Tensor, "item layer d_model"]:
    """Read what every layer returns at each row's last token."""
    last = find_last(encoding)
    rows = torch.arange(len(last))
    layers = range(model.anatomy.n_layers)
    inputs = {k: v for k, v in encoding.items() if k != "labels"}
    with torch.no_grad(), model.trace(**inputs, use_cache=False):
        leaving = [model.layers_output[at].cpu()[rows, last] for at in layers]
        found: Any = torch.stack(leaving, 1)
        found = found.save()
    result: Tensor = found
    return result


def join_directions(
    differences: Float[Tensor, "item layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Join items' differences: their mean, plus their first principal component.

    Example:
        >>> join_directions(torch.tensor([[[1.0, 0]], [[1.0, 0]], [[4.0, 0]]])).round()
        tensor([[3., 0.]])
    """
    flat = differences.flatten(1).float()
    mean = flat.mean(0)
    if len(flat) > 1:
        left, sizes, right = torch.linalg.svd(flat - mean, full_matrices=False)
        # Items that are alike but for rounding have no direction of their own.
        if float(sizes[0]) > ROUNDING * float(flat.norm()):
            sign = left[:, 0][left[:, 0].abs().argmax()].sign()
            mean = mean + sign * right[0]
    return mean.view(differences.shape[1:])
