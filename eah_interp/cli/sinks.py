"""The vision sinks of every head, and the heads that EAH would make donors."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from eah_interp.cli.app import Bar
from eah_interp.cli.tables import tabulate_density, tabulate_top
from eah_interp.errors import SettingsError
from eah_interp.interventions import EAH, SinkMap, score_sinks
from eah_interp.lvlm import LVLM
from eah_interp.lvlm.images import read_image
from eah_interp.report.inspection import list_donors
from eah_interp.report.reading import (
    PATCHED,
    compare_with,
    list_model,
    list_versions,
    read_next_token,
)
from eah_interp.report.tables import say_donors


@dataclasses.dataclass(frozen=True)
class Sinks:
    """Densities of every head on one picture and prompt.

    Attributes:
        model: Which model.
        eah: The settings.
        image: The picture's file.
        prompt: The prompt.
        k: How many of the densest heads to list.
        sink_map: Densities and sinks of the unpatched model.
        donors: Who donates in each patched layer.
    """

    model: Mapping[str, Any]
    eah: EAH
    image: str
    prompt: str
    k: int
    sink_map: SinkMap
    donors: list[dict[str, Any]]

    @property
    def donor_heads(self) -> dict[int, int]:
        """Donor head of each patched layer that has one."""
        return {d["layer"]: d["head"] for d in self.donors if d["head"] is not None}

    def to_dict(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        top = self.sink_map.top(self.k)[["name", "layer", "head", "density", "n_sinks"]]
        gamma = self.eah.gamma
        return {
            "command": "sinks",
            "versions": list_versions(),
            "model": dict(self.model),
            "settings": self.eah.to_dict(),
            "image": self.image,
            "prompt": self.prompt,
            "n_columns": int(self.sink_map.columns[0].sum()),
            "grids": [list(span.grid) for span in self.sink_map.spans[0]],
            "layers": list(self.sink_map.layers),
            "density": self.sink_map.density[0].tolist(),
            "dense": None if gamma is None else self.sink_map.dense(gamma)[0].tolist(),
            "top": top.to_dict(orient="records"),
            "donors": self.donors,
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out."""
        eah = self.eah
        about = f"{self.prompt} (definition {eah.definition}, beta {eah.beta:g})"
        yield Text(f"Sink density of every head, in %: {about}", style="bold")
        yield tabulate_density(self.sink_map, donors=self.donor_heads)
        yield Text(f"\nThe {self.k} densest heads", style="bold")
        yield tabulate_top(self.sink_map, k=self.k)
        yield Text(f"\nEAH's donor: {say_donors(self.donors)}")
        if eah.gamma is not None:
            n_dense = int(self.sink_map.dense(eah.gamma).sum())
            yield Text(f"Dense heads (at least {eah.gamma:.0%}): {n_dense}")


def find_sinks(
    model: LVLM,
    image: Path,
    *,
    prompt: str,
    eah: EAH,
    k: int = 10,
    name: str | None = None,
    bar: Bar | None = None,
) -> Sinks:
    """Score every head of the plain model, and see whom EAH would take as donor.

    Args:
        model: The model.
        image: The picture's file.
        prompt: The prompt.
        eah: The settings.
        k: How many of the densest heads to list.
        name: What the model was loaded as.
        bar: Told of each forward pass.

    Returns:
        Densities, sinks and donors.

    Raises:
        InputError: If the picture cannot be read.
        SettingsError: If `k` is below 1.
    """
    if k < 1:
        msg = f"--top must be at least 1 head, got {k}"
        raise SettingsError(msg)
    bar = Bar() if bar is None else bar
    bar.expect(2)
    picture = read_image(image)
    bar.step("sinks of every head")
    sink_map = score_sinks(
        model, picture, prompt, definition=eah.definition, beta=eah.beta
    )
    patched = {PATCHED: compare_with(eah, controls=False)[PATCHED]}
    reading = read_next_token(
        model, picture, prompt=prompt, conditions=patched, bar=bar
    )
    return Sinks(
        model=list_model(model, name),
        eah=eah,
        image=str(image),
        prompt=prompt,
        k=k,
        sink_map=sink_map,
        donors=list_donors(reading.patches[PATCHED]),
    )
