"""Compare every method with its nulls on the toys, and write docs/methods-compared.md.

    python docs/bench/methods.py --out DIR           # runs, docs/methods.json, the page
    python docs/bench/methods.py --out DIR --toy seed-1 --only run   # one toy
    python docs/bench/methods.py --only page         # from docs/methods.json

DIR keeps each toy's study: whatever stopped it, the same command goes on. Toys can run
side by side, a process each; `--only sum` then sums all that is there. Heads and
dimensions that a method has to find first are found on scenes of the validation split,
and kept in DIR. Seconds are of the processor, of all runs together.
"""

import dataclasses
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import torch
import transformers
import typer

import eah_interp as eah
from eah_interp.benchmarks.lengths import CappedSums
from eah_interp.benchmarks.metrics import count_captions
from eah_interp.benchmarks.paired import Draws
from eah_interp.files import save_bytes
from eah_interp.finders import find_hallucination_heads, find_prompt_heads
from eah_interp.interventions import find_sink_dims
from eah_interp.statistics import adjust_holm, resample_sums
from eah_interp.studies import StudyFile, StudyRun
from eah_interp.studies.conditions import CONTROL_DONORS, Condition
from eah_interp.studies.scores import score_rows
from eah_interp.studies.work import run_batch
from eah_interp.toy import draw_scene, prompt_for, questions_for
from eah_interp.toy.language import mentions_in
from eah_interp.viz.frontier import Spot, plot_line

HERE = Path(__file__).parent
STUDY = HERE.parent / "studies" / "methods.yaml"
RECORD = HERE.parent / "methods.json"
PAGE = HERE.parent / "methods-compared.md"
FIGURE = HERE.parent / "images" / "methods-frontier.png"

TOYS = ("seed-0", "seed-1", "seed-2")
SAMPLINGS = ("random", "popular", "adversarial")

N_SEARCHED, N_USED = 300, 40
"""Validation scenes that are looked through, and on how many heads are found."""

K_HEADS = 3
"""Heads of AD-HH and PIH: the papers' 20 of 1,024 would be one or two of 64."""

MARGIN = 1.0
"""Points: a gain that is smaller is none."""

ALPHA = 0.05

Step = Literal["all", "run", "sum", "page"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# ---- What a method has to find first.


def find_values(model: Any, *, n_searched: int, n_used: int) -> dict[str, Any]:
    """Find heads and dimensions in a toy, on scenes of its validation split."""
    scenes = [draw_scene(seed, split="validation") for seed in range(n_searched)]
    pictures = [scene.pil() for scene in scenes]
    told = model.describe(pictures, "Describe the image.", max_new_tokens=48)
    wrong = [
        place
        for place, (scene, text) in enumerate(zip(scenes, told, strict=True))
        if set(mentions_in(text)) - set(scene.objects)
        and set(mentions_in(text)) & set(scene.objects)
    ][:n_used]
    blamed = find_hallucination_heads(
        model,
        [pictures[place] for place in wrong],
        "Describe the image.",
        objects=[list(dict.fromkeys(mentions_in(told[place]))) for place in wrong],
        truth=[list(scenes[place].objects) for place in wrong],
        caption=[told[place] for place in wrong],
    )
    asked = [
        (picture, prompt_for(question.text))
        for scene, picture in zip(scenes, pictures, strict=True)
        for question in questions_for(scene, sampling="adversarial")
        if not question.answer
    ]
    followed = [
        one
        for one, answer in zip(
            asked,
            model.describe(
                [picture for picture, _ in asked],
                [text for _, text in asked],
                max_new_tokens=2,
            ),
            strict=True,
        )
        if answer == "Yes"
    ][:n_used]
    led = find_prompt_heads(
        model,
        [picture for picture, _ in followed],
        [text for _, text in followed],
        told=["Yes"] * len(followed),
        true=["No"] * len(followed),
    )
    dims = find_sink_dims(model, pictures[:n_used])
    massive = [int(dim) for dim in dims.dim[dims.layers >= 0.5]]
    return {
        "ad_hh": [list(pair) for pair in blamed.top(K_HEADS).heads],
        "ad_hh_items": len(wrong),
        "pih": [list(pair) for pair in led.top(K_HEADS).heads],
        "pih_items": len(followed),
        # A toy without massive activations has its largest dimension taken.
        "var": massive or [int(dims.dim.iloc[0])],
        "var_massive": len(massive),
    }


def fill_study(toy: str, found: Mapping[str, Any], *, scenes: int) -> str:
    """Write a toy's study file: the common one, with what was found in it."""
    import yaml

    values = yaml.safe_load(STUDY.read_text())
    values["model"]["name"] = f"toy:{toy}"
    values["items"]["n_scenes"] = scenes
    for entry in values["conditions"]:
        for key in ("heads", "sink_dims") if isinstance(entry, dict) else ():
            if entry.get(key) == "found":
                entry[key] = found[entry["kind"]]
    return yaml.safe_dump(values, sort_keys=False)


def run_toy(
    toy: str, folder: Path, *, scenes: int, n_searched: int, progress: bool = True
) -> None:
    """Answer all items under all conditions, as far as that is not done."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    model = eah.load(f"toy:{toy}")
    known = folder / "found.json"
    if not known.exists():
        found = find_values(model, n_searched=n_searched, n_used=N_USED)
        save_bytes(json.dumps(found, indent=1).encode(), known)
    text = fill_study(toy, json.loads(known.read_text()), scenes=scenes)
    file = folder / "study.yaml"
    save_bytes(text.encode(), file)
    try:
        StudyFile.load(file).study().run(folder / "study", progress=progress)
    finally:
        spent = folder / "seconds.json"
        before = json.loads(spent.read_text()) if spent.exists() else []
        before.append(round(time.process_time() - started, 1))
        save_bytes(json.dumps(before).encode(), spent)


# ---- Numbers: of each toy over all scenes and drawn ones, then over toys.


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of each toy, over all scenes and over drawn ones.

    Attributes:
        whole: Of each toy.
        drawn: `[toy, sample]`; all toys share the drawn scenes.
        n: Scenes.
    """

    whole: torch.Tensor
    drawn: torch.Tensor
    n: int

    def __sub__(self, other: "Number") -> "Number":
        """Subtract: the same scenes, the same toys."""
        whole, drawn = self.whole - other.whole, self.drawn - other.drawn
        return Number(whole, drawn, self.n)

    @staticmethod
    def mean(several: Sequence["Number"]) -> "Number":
        """Average over several conditions."""
        return Number(
            torch.stack([one.whole for one in several]).mean(0),
            torch.stack([one.drawn for one in several]).mean(0),
            several[0].n,
        )

    def estimate(self, level: float = 1 - ALPHA) -> dict[str, Any]:
        """Estimate the mean over toys: other scenes, and other toys of the recipe.

        The variance is that of scenes (drawn for all toys at once) and that of toys;
        the interval is Student's, with Satterthwaite's degrees of freedom: 2 where
        three toys differ much, as many as scenes where they do not. A toy's own number
        has noise of scenes in it, which counts twice: the interval is rather too wide.
        """
        from scipy import stats

        drawn = self.drawn.mean(0)
        n_toys = len(self.whole)
        of_scenes = float(drawn.var())
        of_toys = float(self.whole.var()) / n_toys if n_toys > 1 else 0.0
        total, value = of_scenes + of_toys, float(self.whole.mean())
        if total <= 0 or not math.isfinite(total + value):
            shown = value if math.isfinite(value) else None
            return {"value": shown, "low": None, "high": None, "p": None}
        parts = of_scenes**2 / (self.n - 1)
        parts += of_toys**2 / (n_toys - 1) if n_toys > 1 else 0.0
        freedom, error = total**2 / parts, math.sqrt(total)
        half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
        p = 2 * float(stats.t.sf(abs(value) / error, freedom))
        return {"value": value, "low": value - half, "high": value + half, "p": p}


class Rows:
    """The answers of some toys, condition by condition, on items that all answered."""

    def __init__(self, runs: Sequence[StudyRun], *, draws: Draws) -> None:
        self.draws = draws
        scored = [score_rows(run) for run in runs]
        self.conditions = runs[0].conditions
        if any(run.conditions != self.conditions for run in runs):
            sys.exit("the toys' studies have other conditions: run them all anew")
        self.captions = _split([rows.captions for rows in scored], self.conditions)
        self.questions = _split([rows.questions for rows in scored], self.conditions)
        self.failed = [int(rows.failures.failed.sum()) for rows in scored]
        self._capped: dict[tuple[str, str], list[CappedSums]] = {}

    def capped(self, name: str, by: Any) -> list[CappedSums]:
        """Sum a condition's captions, cut at every length, for each toy."""
        key = (name, by)
        if key not in self._capped:
            self._capped[key] = [
                CappedSums.of(table, by=by, draws=self.draws)
                for table in self.captions[name]
            ]
        return self._capped[key]

    def excess(self, name: str, by: str, metric: str = "CHAIR_I") -> Number:
        """Measure how far captions lie above the baseline's of the same mean length."""
        pairs = []
        for base, own in zip(
            self.capped("baseline", by), self.capped(name, by), strict=True
        ):
            cut = base.at_length(own.mean_length)[metric]
            pairs.append(
                [n - c for n, c in zip(own.whole_rates()[metric], cut, strict=True)]
            )
        return self._number(pairs, n=self.capped(name, by)[0].n)

    def of_captions(self, name: str, metric: str) -> Number:
        """Measure a metric of captions: `CHAIR_S`, `CHAIR_I` or `recall`."""
        sums = self.capped(name, "objects")
        return self._number([one.whole_rates()[metric] for one in sums], n=sums[0].n)

    def line(self, cap: int, metric: str) -> Number:
        """Measure the baseline's captions, cut at a number of objects."""
        sums = self.capped("baseline", "objects")
        pairs = [one.at(min(cap, one.most))[metric] for one in sums]
        return self._number(pairs, n=sums[0].n)

    def rate(
        self, name: str, count: str, total: str, *, task: str, kind: str = ""
    ) -> Number:
        """Measure a rate of what metrics count."""
        pairs, n = [], 0
        tables = self.questions if task == "yes_no" else self.captions
        for table in tables[name]:
            own = table[table.kind == kind] if kind else table
            counted = own if task == "yes_no" else count_captions(own)
            sums = counted.groupby("cluster", sort=False)[[count, total]].sum()
            found = resample_sums(
                torch.from_numpy(sums.to_numpy(dtype=float, copy=True)),
                resamples=self.draws.resamples,
                seed=self.draws.seed,
            )
            n = found.n
            pairs.append(
                (found.whole[0] / found.whole[1], found.drawn[:, 0] / found.drawn[:, 1])
            )
        return self._number(pairs, n=n)

    @staticmethod
    def _number(pairs: Sequence[Any], *, n: int, scale: float = 100.0) -> Number:
        whole = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        return Number(scale * whole, scale * torch.stack([p[1] for p in pairs]), n)


def _split(
    tables: Sequence[pd.DataFrame], conditions: Sequence[str]
) -> dict[str, list[pd.DataFrame]]:
    """Part tables by condition; only items that every toy answered under every one."""
    wanted = None
    for table in tables:
        counts = table.groupby("item").condition.nunique()
        own = set(counts.index[counts == len(conditions)])
        wanted = own if wanted is None else wanted & own
    return {
        name: [
            table[(table.condition == name) & table["item"].isin(wanted or ())]
            for table in tables
        ]
        for name in conditions
    }


# ---- Methods against their nulls.


LENGTHS = {"objects": "cut to as many objects", "words": "cut to as many words"}


def list_nulls(conditions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """List the methods, with the conditions that are their own nulls.

    Args:
        conditions: As a manifest lists them.
    """
    read = [Condition.from_dict(one) for one in conditions]
    methods = {
        one.name: [other.name for other in read if other.null_of == one.name]
        for one in read
        if one.patch is not None and not one.null_of and one.name not in CONTROL_DONORS
    }
    donors = [one.name for one in read if one.name in CONTROL_DONORS]
    if "EAH" in methods:
        methods["EAH"] = donors
    return methods


def contrast_method(
    rows: Rows, name: str, own_nulls: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Compare a method with its nulls; a gain is below zero of captions, else above."""
    for by, label in LENGTHS.items():
        found = rows.excess(name, by)
        yield {"task": "captions", "null": f"the baseline {label}"} | _write(found)
    if own_nulls:
        each = [rows.excess(one, "objects") for one in own_nulls]
        # Heads may be so needed that without them nothing is named: that has no rate.
        naming = [one for one in each if bool(one.drawn.isfinite().all())]
        label = _name_nulls(own_nulls)
        if len(naming) < len(each):
            n_silent = len(each) - len(naming)
            label += f" ({n_silent} left out, which name nothing, in some sample)"
        found = rows.excess(name, "objects") - Number.mean(naming or each)
        yield {"task": "captions", "null": label} | _write(found)

    def accuracy(condition: str) -> Number:
        return rows.rate(condition, "right", "one", task="yes_no")

    for null in ("baseline", "yes-biased", "said Yes", "near tie"):
        if null in rows.conditions:
            found = accuracy(name) - accuracy(null)
            yield {"task": "questions", "null": null} | _write(found)
    if own_nulls:
        found = accuracy(name) - Number.mean([accuracy(one) for one in own_nulls])
        yield {"task": "questions", "null": _name_nulls(own_nulls)} | _write(found)


def _write(found: Number) -> dict[str, Any]:
    toys = [float(one) if math.isfinite(one) else None for one in found.whole]
    return found.estimate() | {"toys": toys}


def _name_nulls(names: Sequence[str]) -> str:
    if set(names) <= set(CONTROL_DONORS):
        return f"{len(names)} control donors, on average"
    what = "random heads" if "random heads" in names[0] else "random directions"
    return f"{len(names)} draws of {what}, on average"


def judge(contrast: Mapping[str, Any]) -> str:
    """Judge one comparison, by Holm's p and, where it says nothing, by the interval."""
    gain = -1 if contrast["task"] == "captions" else 1
    if contrast["p_holm"] is not None and contrast["p_holm"] < ALPHA:
        return "better" if gain * contrast["value"] > 0 else "worse"
    if contrast["value"] is None:
        return "cannot be told"
    if contrast["low"] is None:
        return "not better" if abs(contrast["value"]) < MARGIN else "cannot be told"
    most = max(gain * contrast["low"], gain * contrast["high"])
    return "not better" if most < MARGIN else "cannot be told"


def sum_method(contrasts: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Sum a method's comparisons of a task up: a verdict, and the nulls it is by."""
    for verdict in ("worse", "not better", "cannot be told"):
        nulls = [one["null"] for one in contrasts if one["verdict"] == verdict]
        if nulls:
            return verdict, nulls
    return "better", [one["null"] for one in contrasts]


def write_sentence(name: str, contrasts: Sequence[Mapping[str, Any]]) -> str:
    """Write what became of a method, in a sentence."""
    said = {
        "better": "better than all its nulls",
        "worse": "worse than {}",
        "not better": "not better than {}",
        "cannot be told": "cannot be told from {}",
    }
    parts = []
    for task in ("captions", "questions"):
        own = [one for one in contrasts if one["task"] == task]
        verdict, nulls = sum_method(own)
        parts.append(f"of {task} {said[verdict].format(', '.join(nulls))}")
    return f"{name}: {'; '.join(parts)}."


# ---- The record.


VALUES = {
    "CHAIR_I": ("captions", "CHAIR_I"),
    "CHAIR_S": ("captions", "CHAIR_S"),
    "recall": ("captions", "recall"),
    "objects": ("n_objects", "one", "caption"),
    "words": ("n_words", "one", "caption"),
    "distinct 4-grams": ("n_distinct_4grams", "n_4grams", "caption"),
    "accuracy": ("right", "one", "yes_no"),
    "yes-ratio": ("yes", "one", "yes_no"),
}
"""What is tabulated of every condition; means of a caption are no percentages."""

MEANS = ("objects", "words")


def measure_condition(rows: Rows, name: str) -> dict[str, Any]:
    """Measure all that is tabulated of a condition."""
    found: dict[str, Number] = {}
    for metric, how in VALUES.items():
        if how[0] == "captions":
            found[metric] = rows.of_captions(name, how[1])
        else:
            found[metric] = rows.rate(name, how[0], how[1], task=how[2])
    for kind in SAMPLINGS:
        found[f"accuracy, {kind}"] = rows.rate(
            name, "right", "one", task="yes_no", kind=kind
        )
    values = {metric: _write(number) for metric, number in found.items()}
    for metric in MEANS:
        values[metric] = {
            key: [v and v / 100 for v in value] if key == "toys" else value
            for key, value in values[metric].items()
        } | {
            key: values[metric][key] and values[metric][key] / 100
            for key in ("value", "low", "high")
        }
    return values


def place_condition(rows: Rows, name: str) -> dict[str, Any]:
    """Find where a condition stands, and how far scenes and toys may move it."""
    parts = [rows.of_captions(name, metric) for metric in ("CHAIR_I", "recall")]
    drawn = torch.stack([part.drawn.mean(0) for part in parts])
    spread = torch.cov(drawn)
    n_toys = len(parts[0].whole)
    if n_toys > 1:
        spread = spread + torch.cov(torch.stack([p.whole for p in parts])) / n_toys
    return {
        "at": [float(part.whole.mean()) for part in parts],
        "covariance": spread.tolist(),
    }


def time_conditions(planned: StudyFile, *, n: int = 32) -> dict[str, dict[str, float]]:
    """Time a batch of captions and one of questions, under each condition, once.

    Seconds of the processor after a warm-up, and the peak of memory beyond the start.
    """
    sys.path.insert(0, str(HERE))
    from peak_memory import measure_peak

    model = planned.study().model
    batches = [
        next(b for b in planned.batches if b.items[0].task == task)
        for task in ("yes_no", "caption")
    ]
    batches = [dataclasses.replace(b, items=b.items[:n]) for b in batches]
    found = {}
    for condition in planned.conditions:

        def run(one: Condition = condition) -> None:
            for batch in batches:
                run_batch(model, batch, one, decoding=planned.decoding)

        peak = measure_peak(run, device="cpu")
        started = time.process_time()
        run()
        seconds = time.process_time() - started
        found[condition.name] = {"seconds": seconds, "megabytes": peak / 2**20}
    return found


def sum_toys(
    out: Path, toys: Sequence[str], *, cost: bool, draws: Draws
) -> dict[str, Any]:
    """Sum up what was run."""
    runs = [StudyRun.load(out / toy / "study") for toy in toys]
    for run in runs:
        run.check_complete()
    rows = Rows(runs, draws=draws)
    manifest = runs[0].manifest
    methods = list_nulls(manifest.conditions)
    contrasts = [
        {"method": name} | one
        for name, own in methods.items()
        for one in contrast_method(rows, name, own)
    ]
    tested = [one for one in contrasts if one["p"] is not None]
    adjusted = adjust_holm([one["p"] for one in tested])
    for one in contrasts:
        one["p_holm"] = None
    for one, value in zip(tested, adjusted, strict=True):
        one["p_holm"] = value
    for one in contrasts:
        one["verdict"] = judge(one)
    most = max(one.most for one in rows.capped("baseline", "objects"))
    line = [
        {"cap": cap} | {m: _write(rows.line(cap, m)) for m in ("CHAIR_I", "recall")}
        for cap in range(1, most + 1)
    ]
    planned = StudyFile.load(out / toys[0] / "study.yaml")
    return {
        "command": "python docs/bench/methods.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "toys": list(toys),
        "scenes": len({item.cluster for item in planned.items}),
        "answers": [run.manifest.n_items * len(run.conditions) for run in runs],
        "failed": rows.failed,
        "hours": {
            toy: sum(json.loads((out / toy / "seconds.json").read_text())) / 3600
            for toy in toys
        },
        "versions": dict(manifest.versions),
        "machine": {
            "processor": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "found": {
            toy: json.loads((out / toy / "found.json").read_text()) for toy in toys
        },
        "draws": dataclasses.asdict(draws),
        "conditions": {
            name: {
                "values": measure_condition(rows, name),
                "stands": place_condition(rows, name),
            }
            for name in rows.conditions
        },
        "methods": {
            name: {
                "own nulls": own,
                "sentence": write_sentence(
                    name, [one for one in contrasts if one["method"] == name]
                ),
            }
            for name, own in methods.items()
        },
        "contrasts": contrasts,
        "line": line,
        "cost": time_conditions(planned) if cost else {},
    }


# ---- The page.


HEAD = """# Methods compared with their nulls

Made by `python docs/bench/methods.py`; not edited by hand. The study is
`docs/studies/methods.yaml`, its numbers are in `docs/methods.json`.

{answers:,} answers: {n} conditions on {scenes} scenes of {toys}, {hours:.1f} hours of
a processor. The toys are small models of a world of twenty objects ([their
card](toy.md)): what holds here need not hold elsewhere. Settings are each kind's own
defaults; a method that was tuned on this toy might do better. Heads that a method has
to find were found on scenes of the validation split ({k} each).

## What a method has to beat

- *Of captions*: the baseline's own captions, cut to the method's mean number of
  objects, and of words. Who only says less stands on that line. CHAIR_I counts each
  object once a caption. At as many objects a lower CHAIR_I is a higher recall, so one
  test serves both.
- *Of questions*: the model as it is; asked to say yes; with near ties turned to Yes
  (arXiv:2504.10020). The metric is the accuracy over POPE's three samplings.
- *Of both*: as many random heads of the same layers, directions of the same norm, or
  EAH's control donors, on average over draws; of captions by how far each lies above
  the line.

Intervals are of the mean over toys, for other scenes and other toys of the recipe; p is
Holm's over all {tests} comparisons. *Better* and *worse* go by p below 0.05. *Not
better*: a gain of {margin:g} point or more lies outside of the interval. The rest
*cannot be told*. A method is as good as the worst of its comparisons.
"""


def write_page(record: Mapping[str, Any]) -> str:
    """Write the page from the record."""
    head = HEAD.format(
        answers=sum(record["answers"]),
        n=len(record["conditions"]),
        scenes=record["scenes"],
        toys=", ".join(f"`{toy}`" for toy in record["toys"]),
        hours=sum(record["hours"].values()),
        k=K_HEADS,
        tests=len(record["contrasts"]),
        margin=MARGIN,
    )
    said = [f"- **{n}**{m['sentence'][len(n) :]}" for n, m in record["methods"].items()]
    parts = [
        head,
        "## What became of each\n",
        "\n".join(said) + "\n",
        "## The line to beat\n",
        "![Recall against CHAIR_I](images/methods-frontier.png)\n",
        "The line is the baseline's captions cut at 1, 2, ... objects. Ellipses hold "
        "95 % of where scenes and toys may move a method; left of the line, and above "
        "it, is better. Numbers behind the marks are in the table.\n",
        "## Every comparison\n",
        _tabulate_contrasts(record) + "\n",
        "## Every condition\n",
        "Means over toys; percent, but for objects and words of a caption. Seconds of "
        "a processor and megabytes of a batch of 32 questions and one of 32 captions, "
        "one run, against the model as it is.\n",
        _tabulate_conditions(record) + "\n",
        "## How it was made\n",
        _tabulate_facts(record) + "\n",
    ]
    return "\n".join(parts)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "undefined"
    if one["low"] is None:
        return f"{one['value']:+.1f}, undetermined"
    return f"{one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]"


def _tabulate_contrasts(record: Mapping[str, Any]) -> str:
    lines = [
        _row("method", "of", "against", "points", "by toy", "p (Holm)", "verdict"),
        _row(*["---"] * 7),
    ]
    for one in record["contrasts"]:
        p = "" if one["p_holm"] is None else f"{one['p_holm']:.3f}"
        toys = ", ".join("-" if v is None else f"{v:+.1f}" for v in one["toys"])
        first = (one["method"], one["task"], one["null"], _interval(one))
        lines.append(_row(*first, toys, p, one["verdict"]))
    return "\n".join(lines)


def _tabulate_conditions(record: Mapping[str, Any]) -> str:
    metrics = [*VALUES, *(f"accuracy, {kind}" for kind in SAMPLINGS)]
    cost = record["cost"]
    more = ["seconds", "megabytes"] if cost else []
    lines = [
        _row("condition", *metrics, *more),
        _row(*["---"] * (1 + len(metrics) + len(more))),
    ]
    plain = cost.get("baseline", {})
    for name, one in record["conditions"].items():
        found = [one["values"][metric]["value"] for metric in metrics]
        cells = ["-" if value is None else f"{value:.1f}" for value in found]
        if cost:
            own = cost[name]
            cells.append(
                f"{own['seconds']:.1f} (x {own['seconds'] / plain['seconds']:.2f})"
            )
            cells.append(f"{own['megabytes']:.0f}")
        lines.append(_row(name, *cells))
    return "\n".join(lines)


def _tabulate_facts(record: Mapping[str, Any]) -> str:
    hours = ", ".join(f"{toy} {h:.2f}" for toy, h in record["hours"].items())
    lines = [
        f"- command: `{record['command']}`",
        f"- date: {record['date']}",
        f"- hours of a processor: {hours}",
        f"- failed answers by toy: {', '.join(map(str, record['failed']))}",
        *(f"- {name}: {value}" for name, value in record["versions"].items()),
    ]
    for toy, found in record["found"].items():
        heads = {
            key: " ".join(f"L{layer}H{head}" for layer, head in found[key])
            for key in ("ad_hh", "pih")
        }
        lines.append(
            f"- found in {toy}: AD-HH {heads['ad_hh']} (on {found['ad_hh_items']} "
            f"scenes with an absent object in the caption), PIH {heads['pih']} (on "
            f"{found['pih_items']} false yeses), VAR dimensions {found['var']} "
            f"({found['var_massive']} massive)"
        )
    return "\n".join(lines)


def draw_frontier(record: Mapping[str, Any], path: Path) -> None:
    """Draw methods around the line to beat."""
    stands = {
        name: record["conditions"][name]["stands"]
        for name in ("baseline", *record["methods"])
    }
    spots = {
        name: Spot(at=(one["at"][0], one["at"][1]), covariance=one["covariance"])
        for name, one in stands.items()
    }
    line = [(one["CHAIR_I"]["value"], one["recall"]["value"]) for one in record["line"]]
    figure = plot_line(
        spots,
        line=line,
        label="the baseline, cut",
        across="CHAIR_I (% of objects, less is better)",
        up="recall (% of objects)",
    )
    figure.savefig(path, dpi=160)


@app.command()
def main(
    *,
    out: Annotated[Path | None, typer.Option(help="Where the studies go.")] = None,
    toy: Annotated[list[str] | None, typer.Option(help="Which toys.")] = None,
    scenes: Annotated[int, typer.Option(help="Scenes of each.")] = 500,
    only: Annotated[str, typer.Option(help="all, run, sum or page.")] = "all",
    searched: Annotated[
        int, typer.Option(help="Scenes to find heads on.")
    ] = N_SEARCHED,
    cost: Annotated[bool, typer.Option(help="Whether costs are measured.")] = True,
    record: Annotated[Path, typer.Option(help="The numbers.")] = RECORD,
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    figure: Annotated[Path, typer.Option(help="Its figure.")] = FIGURE,
) -> None:
    """Compare the methods."""
    if only not in get_args(Step):
        sys.exit(f"expected --only {', '.join(get_args(Step))}, got {only}")
    toys = toy or list(TOYS)
    if only != "page" and out is None:
        sys.exit("expected --out DIR, where the toys' studies are")
    if only in ("all", "run"):
        for name in toys:
            assert out is not None
            run_toy(name, out / name, scenes=scenes, n_searched=searched)
    if only in ("all", "sum"):
        assert out is not None
        found = sum_toys(out, toys, cost=cost, draws=Draws())
        save_bytes(json.dumps(found, indent=1).encode(), record)
    if only != "run":
        found = json.loads(record.read_text())
        draw_frontier(found, figure)
        save_bytes(write_page(found).encode(), page)
        print(f"Written: {page}")


if __name__ == "__main__":
    app()
