"""How much a toy hallucinates, as it is and under EAH and its controls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.benchmarks import compare_benchmarks, run_toy_benchmark
from eah_interp.cli.app import Bar
from eah_interp.interventions import EAH
from eah_interp.lvlm import LVLM
from eah_interp.report.reading import PLAIN, compare_with, list_model, list_versions
from eah_interp.report.tables import say_settings
from eah_interp.toy.scenes import draw_scenes


@dataclass(frozen=True, kw_only=True)
class Hallucination:
    """What the toy benchmark found under each condition.

    Attributes:
        model: What was measured.
        eah: The patch.
        n_scenes: Scenes of the test split.
        changes: Table of `compare_benchmarks` by condition, each against plain.
    """

    model: Mapping[str, Any]
    eah: EAH
    n_scenes: int
    changes: Mapping[str, pd.DataFrame]

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold."""
        return {
            "command": "toy",
            "versions": list_versions(),
            "model": dict(self.model),
            "settings": self.eah.to_dict(),
            "scenes": self.n_scenes,
            "changes": {n: t.to_dict("records") for n, t in self.changes.items()},
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out: metric by metric, a row a condition."""
        yield Text(f"{self.model['name']}, {self.n_scenes} test scenes", style="bold")
        yield Text(say_settings(self.eah) + "\n", style="dim")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("", PLAIN, "condition", "change", "95 %"):
            table.add_column(name, justify="right" if name == PLAIN else "left")
        tables = list(self.changes.items())
        for index, metric in enumerate(tables[0][1].metric):
            for place, (condition, changes) in enumerate(tables):
                row = changes.iloc[index]
                first = (metric, f"{row.before:.1f}") if place == 0 else ("", "")
                interval = f"[{row.low:+.1f}, {row.high:+.1f}]"
                table.add_row(*first, condition, f"{row.change:+.1f}", interval)
        yield table
        yield Text(
            "\nIntervals: paired bootstrap over scenes, of this one model. False "
            "positives: 'Yes' to absent objects. A patch that only shortens captions "
            "lowers CHAIR too: read it beside recall and mentions.",
            style="dim",
        )


def measure_hallucination(
    model: LVLM,
    *,
    eah: EAH,
    n_scenes: int,
    controls: bool = True,
    batch_size: int = 64,
    name: str | None = None,
    bar: Bar | None = None,
) -> Hallucination:
    """Put the toy benchmark to a model, plain, under EAH and under its controls.

    Args:
        model: A toy.
        eah: The patch.
        n_scenes: The first so many scenes of the test split.
        controls: Whether to measure control donors too.
        batch_size: Prompts in one forward pass.
        name: What the model was loaded as.
        bar: Told of each condition.

    Returns:
        Changes with intervals.
    """
    bar = Bar() if bar is None else bar
    conditions = compare_with(eah, controls=controls)
    bar.expect(len(conditions))
    scenes = draw_scenes(range(n_scenes))
    results = {}
    for condition, settings in conditions.items():
        bar.step(f"{condition}, {n_scenes} scenes")
        results[condition] = run_toy_benchmark(
            model, scenes, eah=settings, batch_size=batch_size, progress=False
        )
    plain = results.pop(PLAIN)
    return Hallucination(
        model=list_model(model, name),
        eah=eah,
        n_scenes=n_scenes,
        changes={
            condition: compare_benchmarks(plain, result)
            for condition, result in results.items()
        },
    )
