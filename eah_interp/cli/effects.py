"""Direct effects of heads on objects, laid out for the terminal."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.attribution import (
    HeadAttribution,
    PictureAttribution,
    attribute_heads,
    attribute_patches,
    pose,
)
from eah_interp.attribution.readouts import Target
from eah_interp.cli.app import Bar
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.images import read_image
from eah_interp.report.reading import list_model, list_versions
from eah_interp.report.tables import say_settings

RUNS = ("plain", "patched", "change")
PARTS = ("new_pattern", "new_values", "new_scale")
SUMS = {
    "head": "all heads",
    "block": "MLPs and other blocks",
    "embedding": "embedding",
    "between": "added between layers",
    "bias": "biases",
    "remainder": "left over",
}
"""What is summed over, by kind."""


@dataclasses.dataclass(frozen=True)
class Attributed:
    """Which heads move which object, plain and patched.

    Attributes:
        model: Which model.
        eah: The settings.
        image: The picture's file.
        prompt: The prompt.
        caption: The answer that was read, if one was given.
        k: How many heads to list.
        found: Every effect.
        patches: Effects by image token, where a picture is to be drawn.
    """

    model: Mapping[str, Any]
    eah: EAH
    image: str
    prompt: str
    caption: str | None
    k: int
    found: HeadAttribution
    patches: PictureAttribution | None

    @property
    def error(self) -> float:
        """Largest part of a logit that components leave unexplained, as a share."""
        runs = [self.found.plain, self.found.patched]
        return max(float(run.error.max()) for run in runs if run is not None)

    def top(self, target: int) -> pd.DataFrame:
        """List a target's heads with the largest effects, plain or patched."""
        table = self.found.frame()
        heads = table[(table["target"] == target) & (table["kind"] == "head")]
        size = heads[["plain", "patched"]].abs().max(axis=1)
        order = size.sort_values(ascending=False, kind="stable").index[: self.k]
        return heads.loc[order].reset_index(drop=True)

    def sums(self, target: int) -> pd.DataFrame:
        """Sum a target's effects by kind of component."""
        table = self.found.frame()
        own = table[table["target"] == target]
        return own.groupby("kind")[list(RUNS)].sum().loc[list(SUMS)]

    def to_dict(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        columns = ["name", "layer", "head", *RUNS, *PARTS]
        targets = []
        for index, target in enumerate(self.found.targets):
            sums = self.sums(index)
            targets.append(
                {
                    "object": target.label,
                    "position": target.position,
                    "text": target.text,
                    "plain": float(self.found.plain.values[index]),
                    "patched": self._patched(index),
                    "top": self.top(index)[columns].to_dict("records"),
                    "sums": sums.to_dict("index"),
                }
            )
        return {
            "command": "attribute",
            "versions": list_versions(),
            "model": dict(self.model),
            "settings": self.eah.to_dict(),
            "image": self.image,
            "prompt": self.prompt,
            "caption": self.caption,
            "metric": self.found.metric,
            "donors": self._donors(),
            "targets": targets,
            "error": self.error,
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out: a table for each object, and whether it adds up."""
        yield Text(say_settings(self.eah), style="dim")
        said = ", ".join(
            f"L{one['layer']}: unpatched or no head"
            if one["head"] is None
            else one["name"]
            for one in self._donors()
        )
        yield Text(f"Donor: {said}", style="dim")
        for index, target in enumerate(self.found.targets):
            plain = float(self.found.plain.values[index])
            patched = self._patched(index)
            yield Text(f"\n{self._say_target(target)}", style="bold")
            yield Text(
                f"logit {plain:.3f} without EAH, {patched:.3f} with it "
                f"({patched - plain:+.3f})"
            )
            yield self._tabulate(index)
        yield Text(
            "\nDirect effects, in logits; pattern + values + scale = change. "
            f"Components add up to the logit within {self.error:.0e} of it.",
            style="dim",
        )

    def _say_target(self, target: Target) -> str:
        where = "first word of the answer"
        if self.caption is not None:
            where = f"where the caption is about to say {target.text!r}"
        return f"{target.label}: {where}, position {target.position}"

    def _tabulate(self, target: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("head")
        for name in ("plain", "EAH", "change", "pattern", "values", "scale"):
            table.add_column(name, justify="right")
        for row in self.top(target).to_dict("records"):
            numbers = [f"{row[name]:+.3f}" for name in (*RUNS, *PARTS)]
            table.add_row(str(row["name"]), *numbers)
        table.add_section()
        for kind, sums in self.sums(target).to_dict("index").items():
            if kind != "remainder" and any(sums.values()):
                numbers = [f"{sums[name]:+.3f}" for name in RUNS]
                table.add_row(SUMS[str(kind)], *numbers, style="dim")
        plain, patched = float(self.found.plain.values[target]), self._patched(target)
        logit = [f"{value:+.3f}" for value in (plain, patched, patched - plain)]
        table.add_row("logit", *logit)
        return table

    def _patched(self, target: int) -> float:
        assert self.found.patched is not None
        return float(self.found.patched.values[target])

    def _donors(self) -> list[dict[str, Any]]:
        donors = []
        for layer, heads in self.found.donors.items():
            head = int(heads[0])
            name = f"L{layer}H{head}" if head >= 0 else None
            number = head if head >= 0 else None
            donors.append({"layer": layer, "head": number, "name": name})
        return donors


def attribute_objects(
    model: LVLM,
    image: Path,
    *,
    prompt: str,
    objects: Sequence[str],
    eah: EAH,
    caption: str | None = None,
    yes_no: bool = False,
    k: int = 10,
    name: str | None = None,
    on_picture: bool = False,
    bar: Bar | None = None,
) -> Attributed:
    """Attribute objects' logits to heads, without EAH and with it.

    Args:
        model: The model.
        image: The picture's file.
        prompt: The prompt.
        objects: The objects.
        eah: The settings.
        caption: An answer to read.
        yes_no: Explain "Yes" minus "No".
        k: How many heads to list.
        name: What the model was loaded as.
        on_picture: Also attribute to image tokens.
        bar: Told of each step.

    Returns:
        Every effect.

    Raises:
        InputError: If the picture cannot be read, or the caption names no object.
        SettingsError: If a word cannot be spelled.
        UnsupportedError: If the picture has no patch grid that could be drawn.
    """
    bar = Bar() if bar is None else bar
    bar.expect(2 if on_picture else 1)
    metric: Any = "yes_no" if yes_no else "logit"
    case = pose(
        model,
        read_image(image),
        prompt,
        objects=objects,
        metric=metric,
        caption=caption,
    )
    bar.step("direct effects of every head")
    found = attribute_heads(model, case, patch=eah)
    patches = None
    if on_picture:
        bar.step("effects by image token")
        patches = attribute_patches(model, case, patch=eah)
        patches.picture(0)  # is there a grid to draw?
    return Attributed(
        model=list_model(model, name),
        eah=eah,
        image=str(image),
        prompt=prompt,
        caption=caption,
        k=k,
        found=found,
        patches=patches,
    )
