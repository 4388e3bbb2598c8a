"""What a study fixes, so that its numbers mean something: ids, prompts, weights."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eah_interp.arguments import Named, check_text
from eah_interp.errors import EAHError, InputError, ModelError, SettingsError
from eah_interp.files import save_bytes
from eah_interp.foreign_files import read_json
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.weights import list_state
from eah_interp.results import Part
from eah_interp.saved_results import MANIFEST
from eah_interp.studies.conditions import Condition
from eah_interp.studies.items import Item, check_items, hash_image, list_images
from eah_interp.studies.store import check_folders, has_rows, list_answered

FORMAT = 2

PATHS = 1
"""The format of folders from before: images are known by their paths alone."""

ITEMS = "items.json"

PACKAGES = ("eah-interp", "torch", "transformers", "nnsight")


@dataclass(frozen=True, eq=False, repr=False)
class Manifest(Part):
    """Everything that a study's rows depend on.

    Attributes:
        format: Of the folder.
        items: SHA-256 of ids, prompts, labels, truth, and of which share an image.
        n_items: How many there are.
        conditions: Every condition, with all its settings.
        decoding: Arguments of `generate`.
        batch_size: Items in a batch: which items share one can move a last digit.
        seed: Of answers that are sampled.
        model: Its class, and where it came from.
        weights: SHA-256 of every parameter and buffer.
        dtype: Of the weights.
        attention: The attention backend.
        device: Where it runs.
        versions: Of Python and the packages that compute.
        images: SHA-256 of every image file's bytes, as `list_images` lists them; None
            of a file that could not be read. None in a folder from before.
    """

    format: int
    items: str
    n_items: int
    conditions: tuple[Mapping[str, Any], ...]
    decoding: Mapping[str, Any]
    batch_size: int
    seed: int
    model: str
    weights: str
    dtype: str
    attention: str
    device: str
    versions: Mapping[str, str]
    images: tuple[str | None, ...] | None = None

    def _about(self) -> str:
        return (
            f"{self.n_items} items, {len(self.conditions)} conditions, "
            f"batches of {self.batch_size}, seed {self.seed}, {self.dtype}, "
            f"{self.attention} on {self.device}"
        )

    @classmethod
    def of(
        cls,
        model: Any,
        items: Sequence[Item],
        conditions: Sequence[Condition],
        *,
        decoding: Mapping[str, Any],
        batch_size: int,
        seed: int = 0,
    ) -> "Manifest":
        """State what a study is made of."""
        hf_model = model._module
        return cls(
            format=FORMAT,
            items=_hash_items(items),
            n_items=len(items),
            conditions=tuple(condition.to_dict() for condition in conditions),
            decoding=dict(sorted(decoding.items())),
            batch_size=batch_size,
            seed=seed,
            model=name_model(hf_model),
            weights=hash_weights(hf_model),
            dtype=str(hf_model.dtype).removeprefix("torch."),
            attention=str(hf_model.config.get_text_config()._attn_implementation),
            device=torch.device(model.device).type,
            versions=list_versions(),
            images=tuple(hash_image(image) for image in list_images(items)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Write everything as a mapping; without images where they are not known."""
        values = asdict(self)
        if self.images is None:
            del values["images"]
        return values

    def save(
        self, folder: Path, items: Sequence[Item], *, trust_images: bool = False
    ) -> None:
        """Write the manifest and the items into a study's folder, if it has none.

        Of two processes that come with different studies at the same moment, one
        writes its manifest, and the other is refused before it writes anything.

        Args:
            folder: The study's.
            items: What is asked.
            trust_images: Whether to go on in a folder from before, which does not
                say what was in its images.

        Raises:
            SettingsError: If the folder holds another study, or rows of none; if an
                image was replaced since, or may have been.
            InputError: If what it holds cannot be read.
        """
        # In this order: whoever writes rows has written the manifest before.
        if has_rows(folder) and not (folder / MANIFEST).exists():
            msg = (
                f"{folder} has rows and no {MANIFEST} that says what they are of: "
                f"expected both; put {MANIFEST} back, or use another folder"
            )
            raise SettingsError(msg)
        if not save_bytes(_write(self), folder / MANIFEST, replace=False):
            self._resume(folder, items, trust_images=trust_images)
        if not (folder / ITEMS).exists():
            listed = [item.to_dict() for item in items]
            save_bytes(json.dumps(listed, indent=0).encode(), folder / ITEMS)

    def _resume(
        self, folder: Path, items: Sequence[Item], *, trust_images: bool
    ) -> None:
        """Check that a folder's manifest is this one, image for image."""
        before = theirs = Manifest.load(folder)
        if (folder / ITEMS).exists():
            theirs = before.renew(load_items(folder, before))
        elif before.items == _hash_items(items, with_paths=before.format == PATHS):
            theirs = before.renew(items)
        names = list_images(items)
        theirs.check_same(replace(self, images=None), where=folder)
        if theirs.images is None:
            if names and not trust_images:
                msg = (
                    f"{folder} is from before images were hashed: whether its "
                    f"{len(names)} images are the ones that it was run with cannot be "
                    "told; if you know that they are, go on with --trust-images "
                    "(trust_images=True), else use another folder"
                )
                raise SettingsError(msg)
            return
        pairs = zip(names, theirs.images, self.images or (), strict=True)
        changed = {name for name, old, new in pairs if old != new}
        if not changed:
            return
        # One that no answer came from, such as a file that was missing, may change.
        used = list_images([i for i in items if i.id in list_answered(folder)])
        replaced = [name for name in names if name in changed.intersection(used)]
        if replaced:
            more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
            msg = (
                f"{replaced[0]}{more}: other bytes than when {folder} was begun, and "
                "rows there are of the old ones: expected the same images; put them "
                "back, or use another folder"
            )
            raise SettingsError(msg)
        save_bytes(_write(replace(theirs, images=self.images)), folder / MANIFEST)

    def renew(self, items: Sequence[Item]) -> "Manifest":
        """Write a manifest from before as it would be written now, but for images."""
        if self.format == FORMAT:
            return self
        return replace(self, format=FORMAT, items=_hash_items(items))

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a study's manifest.

        Raises:
            InputError: If there is none, or it is of another format.
        """
        try:
            values = read_json(folder / MANIFEST)
        except InputError as error:
            msg = f"{folder} is no study: expected {MANIFEST} in it; {error}"
            raise InputError(msg) from error
        found = values.get("format") if isinstance(values, dict) else None
        names = {item.name for item in fields(cls)}
        expected = {FORMAT: names, PATHS: names - {"images"}}
        wanted = expected.get(found) if type(found) is int else None
        if wanted is None or set(values) != wanted:
            msg = (
                f"{folder / MANIFEST} has format {found!r:.60}, expected {FORMAT} with "
                "its fields; it was written by another version of eah_interp"
            )
            raise InputError(msg)
        for name, value in values.items():
            if not _FITS[name](value):
                msg = f"{folder / MANIFEST}: {name} cannot be {value!r:.60}"
                raise InputError(msg)
        values["conditions"] = tuple(values["conditions"])
        images = values.pop("images", None)
        return cls(**values, images=None if images is None else tuple(images))

    def differences(self, other: "Manifest") -> list[str]:
        """Name what two manifests do not share: ours against theirs.

        Images are compared where both know theirs.
        """
        ours, theirs = asdict(self), asdict(other)
        if self.images is None or other.images is None:
            ours["images"] = theirs["images"] = None
        return list(_compare("", ours, theirs))

    def check_same(self, other: "Manifest", *, where: Path) -> None:
        """Refuse to go on with, or compare, rows of another study.

        Raises:
            SettingsError: If anything differs; it is named.
        """
        found = self.differences(other)
        if found:
            listed = "; ".join(found)
            msg = (
                f"{where} holds rows of another study ({listed}): expected the same "
                "manifest; use another folder, or undo the change"
            )
            raise SettingsError(msg)


def load_items(folder: Path, manifest: Manifest) -> tuple[Item, ...]:
    """Read a study's items.

    Args:
        folder: The study's.
        manifest: Its manifest, which says what they hash to.

    Raises:
        InputError: If they cannot be read, or are not those of the manifest.
    """
    try:
        listed = read_json(folder / ITEMS)
    except InputError as error:
        msg = f"{folder} is no study: expected {ITEMS} in it; {error}"
        raise InputError(msg) from error
    if not isinstance(listed, list):
        msg = f"{folder / ITEMS} does not list items: {listed!r:.60}"
        raise InputError(msg)
    try:
        items = tuple(Item.from_dict(values) for values in listed)
        check_items(items)
    except InputError as error:
        msg = f"{folder / ITEMS} does not list items: {error}"
        raise InputError(msg) from error
    found = _hash_items(items, with_paths=manifest.format == PATHS)
    if found != manifest.items:
        msg = (
            f"{folder / ITEMS} was changed since the study was begun: expected items "
            f"of SHA-256 {manifest.items[:12]}, as {MANIFEST} has it, got "
            f"{found[:12]}; delete it and run the same study again, which writes it"
        )
        raise InputError(msg)
    return items


def list_versions() -> dict[str, str]:
    """List the versions of Python and of the packages that compute."""
    found = {name: version(name) for name in PACKAGES if _is_there(name)}
    return {"python": platform.python_version()} | found


def hash_weights(hf_model: torch.nn.Module) -> str:
    """Hash every parameter and buffer of a model, names and dtypes included.

    Example:
        >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> hash_weights(one) == hash_weights(one), hash_weights(one) == hash_weights(
        ...     other
        ... )
        (True, False)
    """
    total = hashlib.sha256()
    # By name: two versions of a class may list the same weights in another order.
    for name, tensor in list_state(hf_model):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole = tensor.detach().cpu().contiguous().view(-1)
        total.update(whole.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _hash_items(items: Sequence[Item], *, with_paths: bool = False) -> str:
    """Hash items; folders are none of theirs, so that a study can be moved."""
    listed = [item.to_dict() for item in items]
    if not with_paths:
        places = {image: place for place, image in enumerate(list_images(items))}
        for values in listed:
            image = os.path.normpath(values["image"])
            if image in places:  # the name too: CHAIR's ground truth goes by it
                values["image"] = [places[image], Path(image).name]
    text = json.dumps(listed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def name_images(items: Sequence[Item], manifest: Manifest) -> list[str]:
    """Name each item's image by its bytes, or by its path where they are not known."""
    known = dict(zip(list_images(items), manifest.images or (), strict=False))
    paths = [os.path.normpath(item.image) for item in items]
    return [known.get(path) or path for path in paths]


# ---- What a manifest that somebody sent may hold.


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_conditions(value: Any) -> bool:
    """Whether these are conditions with names that can be folders of their own."""
    if not isinstance(value, list) or not value:
        return False
    try:
        read = [Condition.from_dict(one) for one in value]
        check_folders([condition.name for condition in read])
    except EAHError:
        return False
    return True


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_images(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(one is None or _is_text(one) for one in value)
    )


_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("format", "n_items", "batch_size"), _is_count),
    "seed": lambda value: type(value) is int,
    **dict.fromkeys(("items", "model", "weights", "dtype"), _is_text),
    **dict.fromkeys(("attention", "device"), _is_text),
    "conditions": _are_conditions,
    "decoding": _is_mapping,
    "versions": _are_versions,
    "images": _are_images,
}
"""Whether a value can stand under a key of a manifest."""


def _write(manifest: Manifest) -> bytes:
    return json.dumps(manifest.to_dict(), indent=1).encode()


def _is_there(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _compare(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Name differences down to the single setting: `conditions[1].eah.beta`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from _compare(inner, ours.get(key), theirs.get(key))
    elif _are_lists(ours, theirs) and len(ours) == len(theirs):
        for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            yield from _compare(f"{name}[{place}]", our, their)
    elif _are_lists(ours, theirs) and name == "conditions":
        yield f"conditions: {_names(ours)} against {_names(theirs)}"
    elif ours != theirs:
        yield f"{name}: {_shorten(ours)} against {_shorten(theirs)}"


def _are_lists(*values: Any) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


def _names(conditions: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(conditions)} ({', '.join(str(c['name']) for c in conditions)})"


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- Where a study's model comes from, so that another process can load the same.


@dataclass(frozen=True)
class ModelSource(metaclass=Named):
    """What `load` is given.

    Attributes:
        name: A Hub name or a folder; `toy`, or `toy:seed-1` and the like.
        dtype: Of the weights; the checkpoint's when None.
        device_map: Where it runs.
        attn_implementation: The attention backend.
        revision: A commit, tag or branch on the Hub.

    Example:
        >>> ModelSource("toy").load().n_layers
        8
    """

    name: str = "toy"
    dtype: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name, error=SettingsError)
        for name in ("dtype", "device_map", "attn_implementation", "revision"):
            value = getattr(self, name)
            if value is not None:
                check_text(name, value, error=SettingsError)

    def load(self) -> Any:
        """Load the model.

        Raises:
            ModelError: If it cannot be loaded, or not be worked on.
            InputError: If the folder does not exist.
            SettingsError: If there is no such toy.
        """
        from eah_interp.lvlm import load

        values = dataclasses.asdict(self)
        name = values.pop("name")
        chosen = {key: value for key, value in values.items() if value is not None}
        try:
            return load(None if name == "toy" else name, **chosen)
        except EAHError:
            raise
        except (OSError, ValueError) as error:  # what transformers raises
            reason = " ".join(str(error).split())
            msg = f"cannot load {name}: {reason}"
            raise ModelError(msg) from error
