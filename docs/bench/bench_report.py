"""What the measured times say, and the tables that say it."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefill_variants import VARIANTS
from rich.table import Table

DEPTH = 32
"""Decoder layers of LLaVA-1.5-7B, which ratios are extrapolated to."""

Times = Mapping[str, Sequence[float]]
"""Seconds of each variant, one for each repeat; `name@shallow` for the shallow twin."""


@dataclass(frozen=True)
class Row:
    """What one variant's times say, beside those of the same repeats' bare traces.

    Attributes:
        seconds: Median over the repeats.
        to_plain: Median ratio to the plain forward.
        to_trace: Median ratio to the bare trace.
        extra: Median seconds beyond the bare trace, a patched layer; None where
            nothing is patched.
        extra_range: Least and most of the repeats.
        to_trace_deep: Ratio to the bare trace of a model of 32 layers; None where it
            cannot be extrapolated.
        to_plain_deep: Ratio to the plain forward of a model of 32 layers, likewise.
        per_patched_deep: Ratio to the bare trace of a model of 32 layers, for one of
            the patched layers; None where nothing is patched, or as above.
        per_patched_range: The same from `extra_range`.
    """

    seconds: float
    to_plain: float
    to_trace: float
    extra: float | None
    extra_range: tuple[float, float] | None
    to_trace_deep: float | None
    to_plain_deep: float | None
    per_patched_deep: float | None
    per_patched_range: tuple[float, float] | None


@dataclass(frozen=True)
class Deep:
    """Times of a model of 32 layers, measured or extrapolated.

    Attributes:
        seconds: By variant; None where they cannot be known.
        decoder: What the ratio of one patched layer is to; None likewise.
    """

    seconds: Mapping[str, float | None]
    decoder: float | None


def extrapolate(times: Times, *, n_layers: int, n_shallow: int) -> Deep:
    """Say how long a model of 32 layers takes, from models of two lesser depths.

    Seconds per layer are a slope: the median over the repeats of (deep - shallow) /
    (layers between them), for plain, traced and eager models apart. A variant's time at
    32 layers is its median plus the missing layers at its kind's slope. The decoder is
    32 x seconds of a traced layer, so embedding, vision tower and unembedding are left
    out, and a ratio to it errs on the high side.

    A model that has 32 layers is taken as it is. Without shallow twins, or with a slope
    of zero or less (few repeats on a busy machine), nothing is known.

    Args:
        times: Seconds by variant.
        n_layers: Depth of the models timed.
        n_shallow: Depth of the shallow twins.

    Returns:
        The times.
    """
    median = {n: statistics.median(s) for n, s in times.items() if n in VARIANTS}
    missing = DEPTH - n_layers
    if missing <= 0:
        return Deep(median, median["trace"])
    slopes = {
        VARIANTS[name].kind: measure_slope(times, name, n_layers - n_shallow)
        for name in median
        if f"{name}@shallow" in times
    }
    if "trace" not in slopes or min(slopes.values()) <= 0:
        return Deep(dict.fromkeys(median), None)
    seconds = {
        name: shown + missing * slopes[VARIANTS[name].kind]
        if VARIANTS[name].kind in slopes
        else None
        for name, shown in median.items()
    }
    return Deep(seconds, DEPTH * slopes["trace"])


def summarize(times: Times, *, n_layers: int, n_shallow: int) -> dict[str, Row]:
    """Turn times into ratios, also for a model of 32 layers.

    What one patched layer costs is the median over the repeats of (variant - bare
    trace of the same repeat) / (patched layers). In the released style that difference
    is no layer's alone, as every layer is eager: it has none.

    Args:
        times: Seconds by variant; `plain` and `trace` must be there.
        n_layers: Depth of the models timed.
        n_shallow: Depth of the shallow twins.

    Returns:
        A row for each variant but the shallow twins.
    """
    deep = extrapolate(times, n_layers=n_layers, n_shallow=n_shallow)
    rows = {}
    for name in deep.seconds:
        series, variant = times[name], VARIANTS[name]
        extra = spread = per_patched = per_patched_range = None
        if variant.n_patched and variant.kind == "trace":
            extras = [
                (own - base) / variant.n_patched
                for own, base in zip(series, times["trace"], strict=True)
            ]
            extra, spread = statistics.median(extras), (min(extras), max(extras))
            if deep.decoder is not None:
                per_patched = 1 + extra / deep.decoder
                least, most = (1 + seconds / deep.decoder for seconds in spread)
                per_patched_range = (least, most)
        rows[name] = Row(
            seconds=statistics.median(series),
            to_plain=_median_ratio(series, times["plain"]),
            to_trace=_median_ratio(series, times["trace"]),
            extra=extra,
            extra_range=spread,
            to_trace_deep=_ratio(deep.seconds[name], deep.seconds["trace"]),
            to_plain_deep=_ratio(deep.seconds[name], deep.seconds["plain"]),
            per_patched_deep=per_patched,
            per_patched_range=per_patched_range,
        )
    return rows


def measure_slope(times: Times, name: str, n_between: int) -> float:
    """Measure seconds per layer of a variant's kind, from its deep and shallow times.

    Args:
        times: Seconds by variant.
        name: The variant; `name@shallow` must be there too.
        n_between: How many layers the two depths differ by.

    Returns:
        The median over the repeats.
    """
    pairs = zip(times[name], times[f"{name}@shallow"], strict=True)
    return statistics.median((deep - shallow) / n_between for deep, shallow in pairs)


def _ratio(own: float | None, base: float | None) -> float | None:
    return None if own is None or base is None else own / base


def _median_ratio(series: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(series, base, strict=True))


# -- tables --------------------------------------------------------------------------

HEAD = (
    "variant",
    "ms",
    "x plain",
    "x bare trace",
    "ms added per patched layer (least to most)",
    "32 layers: x bare trace per patched layer",
    "32 layers: x bare trace",
    "peak MiB beyond weights",
    "32 layers: peak with weights, x bare trace",
)


def write_cells(setting: Mapping[str, Any]) -> list[list[str]]:
    """Write the cells of one setting's table, a row for each variant."""
    memory: Mapping[str, int] = setting["peak_bytes"]
    weights = setting["weight_bytes_of_32_layers"]
    lines = []
    for name, row in setting["rows"].items():
        peak = memory.get(name)
        base = memory.get("trace")
        lines.append(
            [
                VARIANTS[name].label,
                f"{1e3 * row['seconds']:,.1f}",
                _x(row["to_plain"]),
                _x(row["to_trace"]),
                _extra(row),
                _per_patched(row),
                _x(row["to_trace_deep"]),
                "" if peak is None else f"{peak / 2**20:,.1f}",
                _x(_ratio(_add(weights, peak), _add(weights, base))),
            ]
        )
    return lines


def _x(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def _add(weights: int, peak: int | None) -> int | None:
    return None if peak is None else weights + peak


def _extra(row: Mapping[str, Any]) -> str:
    if row["extra"] is None:
        return ""
    least, most = (1e3 * seconds for seconds in row["extra_range"])
    return f"{1e3 * row['extra']:,.1f} ({least:,.1f} to {most:,.1f})"


def _per_patched(row: Mapping[str, Any]) -> str:
    if row["per_patched_deep"] is None:
        return ""
    least, most = row["per_patched_range"]
    return f"{row['per_patched_deep']:.4f} ({least:.4f} to {most:.4f})"


def describe_setting(setting: Mapping[str, Any]) -> str:
    """Say in a sentence what a table's prompts and model were."""
    layers, slope = f"{setting['n_layers']} layers", ""
    if setting["seconds_per_layer"] is not None:
        layers += f" (and {setting['n_shallow']}, for the slopes)"
        slope = f"; a traced layer takes {1e3 * setting['seconds_per_layer']:,.1f} ms"
    return (
        f"Batch {setting['batch']}, {setting['tokens']:,} tokens "
        f"({setting['image_tokens']:,} of images), {layers}, width "
        f"{setting['d_model']}, {setting['dtype']}, {setting['attention']}; "
        f"{setting['repeats']} repeats{slope}."
    )


def draw_table(setting: Mapping[str, Any]) -> Table:
    """Draw one setting for the terminal."""
    table = Table(*HEAD, title=describe_setting(setting))
    for line in write_cells(setting):
        table.add_row(*line)
    return table


def write_markdown(result: Mapping[str, Any]) -> str:
    """Write a result as the Markdown between a page's markers."""
    where, versions = result["hardware"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"`{result['command']}` on {result['date'][:10]}: {where['device']}, "
        f"{where['threads']} threads, load {where['load']} when it began; {packages}.",
    ]
    for setting in result["settings"]:
        lines += ["", f"**{describe_setting(setting)}**", ""]
        lines.append(f"| {' | '.join(HEAD)} |")
        lines.append("|---|" + "---:|" * (len(HEAD) - 1))
        lines += [f"| {' | '.join(cells)} |" for cells in write_cells(setting)]
    notes = [f"- Left out: {note}." for note in result["left_out"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def replace_section(page: Path, name: str, text: str) -> None:
    """Write text between a page's markers `<!-- bench:name -->` and its end.

    Args:
        page: A Markdown page.
        name: Name of the section.
        text: What stands there from now on.

    Raises:
        ValueError: If the page does not have both markers, once each.
    """
    content = page.read_text(encoding="utf-8")
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if content.count(start) != 1 or content.count(end) != 1:
        msg = f"{page} needs the markers {start} and {end} once each to hold the table"
        raise ValueError(msg)
    before, _, rest = content.partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def add_parts(out: Path, name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Write parts of a result into the JSON under its name, keeping all others.

    Returns:
        The result with all parts that there are.
    """
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    kept[name] = {**kept.get(name, {}), **parts}
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    whole: dict[str, Any] = kept[name]
    return whole


def say_machine(where: Mapping[str, Any]) -> str:
    """Say in a sentence by which command, when and on what a part was measured."""
    hardware = where["hardware"]
    return (
        f"`{where['command']}` on {where['date'][:10]}: {hardware['device']}, "
        f"{hardware['threads']} threads, load {hardware['load']} when it began"
    )


def rows_as_data(rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """Turn rows into what JSON can hold."""
    return {name: asdict(row) for name, row in rows.items()}
