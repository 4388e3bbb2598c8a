"""What can be loaded, and what is refused and why."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.testing import FAMILIES
from eah_interp.testing.support import read_support
from eah_interp.toy.model import TOYS, toy_path


def list_models() -> dict[str, Any]:
    """List the embedded toys and the tested families, refused ones included."""
    tested = read_support()["families"]
    return {
        "command": "models",
        "toys": [
            {
                "name": name,
                "path": str(toy_path(name)),
                "present": (toy_path(name) / "model.safetensors").is_file(),
            }
            for name in TOYS
        ],
        "families": [
            {
                "name": family.name,
                "class": family.model,
                "supported": not family.refused,
                "why": family.refused,
                "tests": tested.get(family.name, {}),
            }
            for family in FAMILIES.values()
        ],
    }


def show_models(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out what `list_models` found."""
    yield Text(
        "The embedded toys; the first is loaded when no --model is named", style="bold"
    )
    toys = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    toys.add_column("toy", no_wrap=True)
    toys.add_column("folder", overflow="fold")
    for toy in record["toys"]:
        there = toy["path"] if toy["present"] else "not trained yet"
        toys.add_row(toy["name"], there)
    yield toys
    yield Text()
    yield Text(
        "Families with tests; any checkpoint of them loads by name", style="bold"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("family")
    table.add_column("class in transformers", no_wrap=True)
    for way in ("eager", "SDPA", "lens"):
        table.add_column(way, no_wrap=True)
    refused = [family for family in record["families"] if not family["supported"]]
    for family in record["families"]:
        if family["supported"]:
            ways = ("eager", "sdpa", "transformer_lens")
            results = [family["tests"].get(way, "-") for way in ways]
            table.add_row(family["name"], family["class"], *results)
    yield table
    yield Text(
        "exact: the same donors, and logits within 1e-4, as an oracle that replaces "
        "patterns head by head (on tiny random models); lens: TransformerLens, "
        "where it has a bridge\n",
        style="dim",
    )
    yield Text("Refused", style="bold")
    for family in refused:
        yield Text(f"{family['class']}: {family['why']}")
    yield Text(
        "\nOther decoder-only models are examined when they are loaded, and refused "
        "with a reason where they do not fit: eah-interp models --model NAME",
        style="dim",
    )
