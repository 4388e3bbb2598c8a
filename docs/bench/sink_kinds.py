"""Put EAH's claims, and what sinks do, to the toys by kind of sink.

    python docs/bench/sink_kinds.py --out DIR       # docs/sinks-by-kind.json, .md
    python docs/bench/sink_kinds.py --only page     # from docs/sinks-by-kind.json

The toys have sinks of neither kind, so that some are planted by hand: each picture has
three tokens of the tower made large, and three columns made massive in one dimension.
Test scenes are then asked about and described under EAH with donors by kind, and with
sinks of either kind dropped, averaged, moved, swapped and scaled, each beside the same
edit of as many other columns. DIR keeps what each toy answered: whatever stopped it,
the same command goes on with the next toy, or with captions that are not there yet.
Toys can run side by side: `--toy seed-1 --only run`.
"""

import datetime
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from false_prompts import (
    estimate,
    list_versions,
    run_toys,
    subtract,
    tabulate,
    write,
    write_toys,
)
from methods import ALPHA, MARGIN, TOYS, Number, Rows

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.files import save_bytes
from eah_interp.interventions import SinkEdit, donors_of_run, find_sinks, map_tower
from eah_interp.statistics import adjust_holm, resample_sums
from eah_interp.studies import Condition, Study, StudyRun, toy_items
from eah_interp.toy import Scene, draw_scene, prompt_for, questions_for

HERE = Path(__file__).parent
RECORD = HERE.parent / "sinks-by-kind.json"
PAGE = HERE.parent / "sinks-by-kind.md"

N_SCENES = 160
"""Test scenes, each described, and asked about an object that is there and one that is
not."""

N_CHECKED = 20
"""Scenes on which it is checked that sinks are found where they were planted."""

BATCH = 40

TOWER = (22, 47, 71)
"""Patches whose token of the tower is made large."""

TIMES = 30.0
"""How many times as large."""

LANGUAGE = (35, 58, 84)
"""Patches whose column is made massive, in `DIM`, where layer `FROM` returns it."""

DIM, FROM, VALUE = 11, 0, 3000.0

SHALLOW = (0, 1)
"""The layers whose sinks the paper counts."""

LAYER, DEEPER = 1, 4
"""Where EAH broadcasts, and where it is claimed to do less."""

COLUMNS = ("all", "tower", "language")
"""By which columns donors are chosen."""

Step = Literal["all", "run", "page"]

Answers = dict[str, list[float]]
"""A measure's name, and its number in each scene."""

SAID: Mapping[str, str] = {
    "right": "right answers (points)",
    "false": "false yes (points)",
    "margin": "margin of the truth (logits)",
}
SCALE: Mapping[str, float] = {"right": 100.0, "false": 100.0, "margin": 1.0}

TOLD: Mapping[str, str] = {
    "excess": "CHAIR_I beyond plain captions of as many objects (points)",
    "CHAIR_I": "CHAIR_I (points)",
    "recall": "recall (points)",
    "objects": "objects a caption",
}
"""What is measured of captions."""

DECIDES = ("right", "excess")
"""What is judged: of questions, and of captions."""

WORLDS = ("as it is", "planted")
"""A toy without and with sinks: folders of its captions in DIR."""

EDITS: Mapping[str, SinkEdit] = {
    "tower: drop": SinkEdit(columns="tower", act="drop"),
    "language: drop": SinkEdit(columns="language", act="drop", layers=f"{FROM + 1}:"),
    "tower: mean": SinkEdit(columns="tower", act="mean"),
    "language: mean": SinkEdit(
        columns="language", act="mean", at="layers", layers=(FROM,)
    ),
    "tower: move": SinkEdit(columns="tower", act="move"),
    "language: move": SinkEdit(
        columns="language", act="move", at="layers", layers=(FROM,)
    ),
    "tower: swap": SinkEdit(columns="tower", act="swap"),
    "tower: scale back": SinkEdit(
        columns="tower", act="scale", factor=1 / TIMES, at="vision"
    ),
}
"""What is done to sinks of a kind."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# ---- What is asked, and of which model.


def list_questions(scenes: Sequence[Scene]) -> list[tuple[Any, str, bool]]:
    """List a picture, a prompt and the truth: neighbours show different scenes."""
    asked = [questions_for(one, sampling="adversarial") for one in scenes]
    return [
        (scene.pil(), prompt_for(pair[k].text), pair[k].answer)
        for k in (0, 1)
        for scene, pair in zip(scenes, asked, strict=True)
    ]


def plant(model: Any) -> Any:
    """Make a twin with sinks of both kinds in every picture."""
    picture = draw_scene(0).pil()
    links = map_tower(model, picture)
    columns = links.spans[0][0].columns
    (tokens,) = zip(*(links.tokens_of(columns[k]) for k in TOWER), strict=True)
    patches = list(tokens)
    places = torch.tensor(LANGUAGE)
    with model.edit() as (_, planted):
        image = planted.image_mask
        huge = planted.vision_output.clone()
        huge[:, patches] *= TIMES
        planted.vision_output = huge
        stream = planted.layers_output[FROM].clone()
        chosen = image & torch.isin(image.cumsum(-1) - 1, places)
        stream[..., DIM] = torch.where(chosen, VALUE, stream[..., DIM])
        planted.layers_output[FROM] = stream
    return planted


def check_planted(model: Any, *, n_scenes: int) -> dict[str, Any]:
    """Count the sinks of each kind, and how many of those planted are among them."""
    scenes = [draw_scene(seed) for seed in range(n_scenes)]
    found = find_sinks(model, [scene.pil() for scene in scenes])
    counted: dict[str, Any] = {"columns": int(found.columns.sum())}
    for kind, places in (("tower", TOWER), ("language", LANGUAGE)):
        mask = found.mask(kind)
        there = [
            bool(mask[item, spans[0].columns[place]])
            for item, spans in enumerate(found.spans)
            for place in places
        ]
        counted[kind] = int(mask.sum())
        counted[f"{kind}, planted"] = [sum(there), len(there)]
    return counted


# ---- A toy's answers.


def ask(model: Any, asked: Sequence[Any], patch: Any = None) -> Answers:
    """Ask all questions under a patch: whether answers are right, and by how much."""
    tokenizer = model.tokenizer
    # As a word of a sentence: behind a space.
    words = (tokenizer.tokenize(f"a {word}")[1] for word in ("Yes", "No"))
    yes, no = map(tokenizer.convert_tokens_to_ids, words)
    margins, donors = [], []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        images, prompts = [one[0] for one in part], [one[1] for one in part]
        twin = model
        if patch is not None:
            twin = eah.edit(model, patch.fit(model, images, prompts))
        with torch.no_grad(), twin.trace(images, prompts):
            logits = twin.output.logits[:, -1].save()
        margins += (logits[:, yes] - logits[:, no]).tolist()
        if isinstance(patch, eah.EAH):
            (layer,) = patch.layers
            found = donors_of_run(twin).get(layer, torch.full((len(part),), -1))
            donors += (found >= 0).tolist()
    n_scenes = len(asked) // 2
    signs = [1.0 if truth else -1.0 for *_, truth in asked]
    own = [sign * margin for sign, margin in zip(signs, margins, strict=True)]

    def pair(values: Sequence[float]) -> list[float]:
        halves = zip(values[:n_scenes], values[n_scenes:], strict=True)
        return [(one + other) / 2 for one, other in halves]

    answers = {
        "right": pair([float(one > 0) for one in own]),
        "margin": pair(own),
        "false": [
            float(margin > 0)
            for margin, (*_, truth) in zip(margins, asked, strict=True)
            if not truth
        ],
    }
    if donors:
        answers["patched"] = pair([float(one) for one in donors])
    return answers


def list_conditions() -> dict[str, Any]:
    """List what is done to a toy with sinks: EAH by kind, edits, and their controls."""
    found: dict[str, Any] = {"plain": None}
    for columns in COLUMNS:
        for layer in (LAYER, DEEPER):
            found[f"EAH {columns}: layer {layer}"] = eah.EAH(
                layers=(layer,), columns=columns
            )
        found[f"EAH {columns}: sparsest"] = eah.EAH(
            layers=(LAYER,), columns=columns, donor="sparsest"
        )
    for donor in ("random", "uniform"):
        found[f"EAH: {donor}"] = eah.EAH(layers=(LAYER,), donor=donor)
    for name, edit in EDITS.items():
        found[name] = edit
        found |= {f"{name}, {what}": one for what, one in edit.controls().items()}
    return found


def score(model: Any, asked: Sequence[Any]) -> dict[str, Answers]:
    """Score each scene's density by kind: shallow layers, and these minus the last."""
    found: dict[str, Answers] = {}
    first = asked[: len(asked) // 2]
    for columns in COLUMNS:
        shallow, slope = [], []
        for start in range(0, len(first), BATCH):
            part = first[start : start + BATCH]
            images, prompts = [one[0] for one in part], [one[1] for one in part]
            scored = eah.score_sinks(model, images, prompts, columns=columns)
            density = scored.density.mean(-1)
            low = density[:, list(SHALLOW)].mean(-1)
            shallow += low.tolist()
            slope += (low - density[:, -len(SHALLOW) :].mean(-1)).tolist()
        found[columns] = {"shallow": shallow, "slope": slope}
    return found


def describe(
    model: Any, conditions: Mapping[str, Any], folder: Path, *, n_scenes: int
) -> None:
    """Have scenes described under conditions, as far as that is not done."""
    Study(
        model,
        toy_items(n_scenes, questions=False),
        [
            Condition("baseline" if name == "plain" else name, patch)
            for name, patch in conditions.items()
        ],
        decoding={"caption": {"max_new_tokens": 48}},
        batch_size=BATCH,
    ).run(folder, progress=False)


def read_captions(out: Path, toys: Sequence[str]) -> dict[str, Rows]:
    """Read what toys told, as they are and with sinks."""
    found = {}
    for world in WORLDS:
        runs = [StudyRun.load(out / toy / world) for toy in toys]
        for run in runs:
            run.check_complete()
        found[world] = Rows(runs, draws=Draws())
        # Scenes are compared with their density: none may be left out.
        if any(found[world].failed):
            sys.exit(f"{out}: some captions {world} failed: {found[world].failed}")
    return found


def run_toy(toy: str, out: Path, *, n_scenes: int) -> dict[str, Any]:
    """Ask a toy everything: as it is, and with sinks."""
    started = time.process_time()
    model = eah.load(f"toy:{toy}")
    planted = plant(model)
    asked = list_questions([draw_scene(seed) for seed in range(n_scenes)])
    answers = {
        f"as it is, {name}": ask(model, asked, patch)
        for name, patch in list_conditions().items()
        if name == "plain" or name.endswith(f"layer {LAYER}")
    }
    for name, patch in list_conditions().items():
        answers[name] = ask(planted, asked, patch)
    folders = [out / toy / world for world in WORLDS]
    describe(model, {"plain": None}, folders[0], n_scenes=n_scenes)
    describe(planted, list_conditions(), folders[1], n_scenes=n_scenes)
    return {
        "answers": answers,
        "density": score(planted, asked),
        "density as it is": score(model, asked),
        "found": check_planted(planted, n_scenes=N_CHECKED),
        "found as it is": check_planted(model, n_scenes=N_CHECKED),
        "seconds": round(time.process_time() - started, 1),
    }


# ---- Sums over scenes and toys.


def correlate(ones: Sequence[Answers], name: str, errors: Sequence[Any]) -> Any:
    """Correlate ranks of densities and of errors, scene by scene, toy by toy."""
    from scipy import stats

    whole, drawn = [], []
    for own, wrong in zip(ones, errors, strict=True):
        x, y = (
            torch.tensor(stats.rankdata(values), dtype=torch.float64)
            for values in (own[name], wrong)
        )
        x, y = x - x.mean(), y - y.mean()
        sums = resample_sums(
            torch.stack([x, y, x * x, y * y, x * y], 1),
            resamples=Draws().resamples,
            seed=Draws().seed,
        )
        whole.append(_pearson(sums.whole, sums.n))
        drawn.append(_pearson(sums.drawn, sums.n))
    number = Number(torch.stack(whole), torch.stack(drawn), len(errors[0]))
    return {**number.estimate(), "toys": number.whole.tolist()}


def _pearson(sums: torch.Tensor, n: int) -> torch.Tensor:
    x, y, xx, yy, xy = (sums / n).unbind(-1)
    spread = ((xx - x * x) * (yy - y * y)).clamp(min=0).sqrt()
    found: torch.Tensor = (xy - x * y) / spread
    return found


def measure(rows: Rows, name: str, what: str) -> Number:
    """Measure a condition's captions."""
    if what == "excess":
        return rows.excess(name, "objects")
    if what == "objects":
        sums = rows.capped(name, "objects")
        whole, drawn = zip(*(one.mean_length for one in sums), strict=True)
        return Number(torch.stack(whole), torch.stack(drawn), sums[0].n)
    return rows.of_captions(name, what)


def count_absent(rows: Rows) -> list[list[float]]:
    """Count each scene's absent objects in plain captions, toy by toy."""
    return [
        [
            float(len(set(named) - set(there)))
            for named, there in zip(table.mentions, table.truth, strict=True)
        ]
        for table in (
            one.set_index("cluster").loc[[str(k) for k in range(len(one))]]
            for one in rows.captions["baseline"]
        )
    ]


def sum_toys(
    toys: Mapping[str, Mapping[str, Any]], told: Mapping[str, Rows]
) -> dict[str, Any]:
    """Sum what all toys answered and told; p is adjusted over both."""
    answers = [one["answers"] for one in toys.values()]
    effects = [*_list_effects(answers), *_list_told(told["planted"])]
    decided = [one for one in effects if one["decides"]]
    known = [one for one in decided if one["p"] is not None]
    adjusted = adjust_holm([one["p"] for one in known]) if known else ()
    for one, p in zip(known, adjusted, strict=True):
        one["p_holm"] = p
    for one in decided:
        one["verdict"] = judge(one, "right" if one["what"] == "right" else "absent")
    return {
        "worlds": {
            name: {
                what: estimate([one[name][what] for one in answers], scale=scale)
                for what, scale in SCALE.items()
            }
            | {
                what: _write_number(measure(told[world], "baseline", what))
                for what in ("CHAIR_I", "recall", "objects")
            }
            for name, world in zip(("as it is, plain", "plain"), WORLDS, strict=True)
        },
        "patched": {
            name: estimate([one[name]["patched"] for one in answers])
            for name in answers[0]
            if "patched" in answers[0][name]
        },
        "slopes": {
            f"{world}{columns}": estimate(
                [one[key][columns]["slope"] for one in toys.values()]
            )
            for key, world in (("density as it is", "as it is, "), ("density", ""))
            for columns in COLUMNS
        },
        "correlations": {
            columns: correlate(
                [one["density"][columns] for one in toys.values()],
                "shallow",
                [[-m for m in one["plain"]["margin"]] for one in answers],
            )
            for columns in COLUMNS
        },
        "correlations of captions": {
            columns: correlate(
                [one["density"][columns] for one in toys.values()],
                "shallow",
                count_absent(told["planted"]),
            )
            for columns in COLUMNS
        },
        "effects": effects,
    }


def _list_pairs() -> Iterator[tuple[str, str, list[str], str]]:
    """List what is compared: family, condition, its references, and their name."""
    for columns in COLUMNS:
        own = f"EAH {columns}: layer {LAYER}"
        yield "EAH", own, ["plain"], "no broadcast"
        yield "EAH", own, [f"EAH {columns}: layer {DEEPER}"], f"layer {DEEPER}"
        yield "EAH", own, [f"EAH {columns}: sparsest"], "the sparsest donor"
        nulls = ["EAH: random", "EAH: uniform"]
        yield "EAH", own, nulls, "a random head and even shares"
    for name, edit in EDITS.items():
        controls = [f"{name}, {what}" for what in edit.controls()]
        yield "edit", name, ["plain"], "no edit"
        yield "edit", name, controls, "the same of other columns"


def _list_effects(answers: Sequence[Mapping[str, Answers]]) -> Iterator[dict[str, Any]]:
    for (family, name, others, against), what in itertools.product(
        _list_pairs(), SCALE
    ):
        tables = [
            subtract(one[name][what], *(one[other][what] for other in others))
            for one in answers
        ]
        changed = estimate(tables, scale=SCALE[what])
        yield {
            "family": family,
            "name": name,
            "against": against,
            "what": what,
            "decides": what in DECIDES and against != "no edit",
            **changed,
        }


def _list_told(rows: Rows) -> Iterator[dict[str, Any]]:
    """List the same comparisons of captions."""
    find = functools.cache(functools.partial(measure, rows))
    for (family, name, others, against), what in itertools.product(_list_pairs(), TOLD):
        ones = ["baseline" if other == "plain" else other for other in others]
        each = [find(other, what) for other in ones]
        yield {
            "family": family,
            "name": name,
            "against": against,
            "what": what,
            "decides": what in DECIDES and against != "no edit",
            **_write_number(find(name, what) - Number.mean(each)),
        }


def _write_number(number: Number) -> dict[str, Any]:
    # Equal captions differ by rounding, which would have an interval and a p.
    whole, drawn = (part.round(decimals=9) for part in (number.whole, number.drawn))
    return {**Number(whole, drawn, number.n).estimate(), "toys": whole.tolist()}


def judge(one: Mapping[str, Any], what: str = "right") -> str:
    """Judge a change: of right answers, or of absent objects."""
    if one["low"] is None:
        return "no change" if one["value"] == 0 else "cannot be told"
    if one["p_holm"] < ALPHA:
        return f"fewer {what}" if one["value"] < 0 else f"more {what}"
    if one["low"] > -MARGIN and one["high"] < MARGIN:
        return "no change"
    return "cannot be told"


# ---- The page.


HEAD = """# Sinks by kind on the toy

Made by `python docs/bench/sink_kinds.py`; not edited by hand. Its numbers are in
`docs/sinks-by-kind.json`.

EAH counts every column that heads look at as a vision sink. [Some are made in the
vision tower, others in the language model](how-to/sink-kinds.md); of the former it is
said that they are useful, of the latter that they are not (arXiv:2510.08510). Here
EAH's claims are put to the toys with donors by kind, and sinks of either kind are
dropped, averaged, moved, swapped and scaled, beside the same edit of as many other
columns. {scenes} test scenes, each described, and asked about an object that is there
and one that is likely and is not. Intervals are of the mean over {toys} toys ({names}),
for other scenes and other toys of the recipe; "by toy" has each toy's own.

**The toys have sinks of neither kind**, so that all below is of sinks that were planted
by hand, in every picture at the same places: {n_tower} tokens of the tower times
{times:g} (patches {tower}), and {n_language} columns with {value:g} in dimension {dim}
where layer {layer} returns them (patches {language}). A toy was not trained with them.
What they do to it says whether the instruments tell kinds apart, and what such numbers
do to a model that does not expect them; of sinks that a model has made for itself it
says nothing.
"""

PLANTED = """## What was planted, and is found

`find_sinks` on {n} scenes of each toy, columns of all together.
"""

DENSITY = """## Where sinks are dense (claim 1), and where answers are wrong (claim 2)

Density of shallow layers ({shallow}) minus that of the last two, in points, and the
rank correlation of a scene's shallow density with its error: of questions minus the
margin of the truth, of a caption the absent objects that it names. The claims expect
the first above zero and the others below. Planted sinks of the language model begin
behind layer {layer}, so that none is in what enters it.
"""

EFFECTS = """## What EAH (claims 3 and 4) and edits change

Of claim 4 only the donor is put to the test. Right answers decide, each against its
controls; p is Holm's over these and the same comparisons of captions. *No change*: the
interval lies within {margin:g} point of zero. `mean` puts the mean of the image's other
columns in a sink's place, `move` exchanges it with a column drawn at random, `swap`
with that of another scene; `scale back` divides the tower's tokens by {times:g} before
the projector, which undoes the planting.
"""


CAPTIONS = """## What they change in captions

Under the same conditions the same scenes are described. Who only says less is no better
([methods compared](methods-compared.md)), so that what decides is by how much CHAIR_I
(the share of absent ones among a caption's different objects) lies above that of the
plain captions, cut to the condition's mean number of objects; against controls, how
much more so than theirs. Nothing makes plain captions longer: where a condition names
more, they stay whole. CHAIR_I, recall and objects beside it are of captions as they
are. All differences are between captions of the same images.
"""


def write_page(record: Mapping[str, Any]) -> str:
    """Write the page from the record."""
    toys = record["toys"]
    facts = [
        f"- command: `{record['command']}`",
        f"- date: {record['date']}",
        *(f"- {toy}: {one['seconds']:.0f} seconds" for toy, one in toys.items()),
        *(f"- {name}: {value}" for name, value in record["versions"].items()),
    ]
    parts = [
        HEAD.format(
            scenes=record["scenes"],
            toys=len(toys),
            names=", ".join(f"`{toy}`" for toy in toys),
            n_tower=len(TOWER),
            n_language=len(LANGUAGE),
            times=TIMES,
            value=VALUE,
            dim=DIM,
            layer=FROM,
            tower=", ".join(map(str, TOWER)),
            language=", ".join(map(str, LANGUAGE)),
        ),
        "## In short\n",
        "\n".join(f"- {one}" for one in _sum_up(record)) + "\n",
        PLANTED.format(n=record["checked"]),
        _tabulate_found(toys) + "\n",
        DENSITY.format(shallow=", ".join(map(str, SHALLOW)), layer=FROM),
        _tabulate_density(record) + "\n",
        EFFECTS.format(margin=MARGIN, times=TIMES),
        _tabulate_effects(record) + "\n",
        CAPTIONS,
        _tabulate_told(record) + "\n",
        "## How it was made\n",
        "\n".join(facts) + "\n",
    ]
    return "\n".join(parts)


def _sum_up(record: Mapping[str, Any]) -> Iterator[str]:
    worlds, patched = record["worlds"], record["patched"]
    bare, own = (worlds[name] for name in ("as it is, plain", "plain"))
    yield (
        "Planting takes "
        + ", ".join(
            f"{said} from {bare[what]['value']:.1f} to {own[what]['value']:.1f} %"
            for what, said in (
                ("right", "right answers"),
                ("CHAIR_I", "absent ones among objects in captions (CHAIR_I)"),
                ("recall", "recall"),
            )
        )
        + "."
    )
    shares = ", ".join(
        f"{patched[f'as it is, EAH {columns}: layer {LAYER}']['value']:.0f} % (by "
        f"{columns})"
        for columns in COLUMNS
    )
    yield f"As they are, EAH finds a donor in layer {LAYER} for {shares} of questions."
    for what, said in zip(DECIDES, ("questions", "captions"), strict=True):
        decided = [
            one for one in record["effects"] if one["decides"] and one["what"] == what
        ]
        verdicts = [one["verdict"] for one in decided]
        told = sum(verdict.startswith(("fewer", "more")) for verdict in verdicts)
        wide = [
            (one["high"] - one["low"]) / 2 for one in decided if one["low"] is not None
        ]
        yield (
            f"Of {len(decided)} comparisons of {said} that decide, {told} are told "
            f"from zero; {verdicts.count('no change')} are within {MARGIN:g} point of "
            f"it. What is smaller than their intervals is not seen: half of these "
            f"reach further than {statistics.median(wide):.1f} points to either side."
        )
    effects = _key_effects(record)
    for name, against in itertools.chain(
        ((f"EAH {columns}: layer {LAYER}", "no broadcast") for columns in COLUMNS),
        ((name, "the same of other columns") for name in EDITS),
    ):
        one, margin, told = (
            effects[name, against, what] for what in ("right", "margin", "excess")
        )
        yield (
            f"{name}, against {against}: {write(one)} points of right answers "
            f"(**{one['verdict']}**), {write(margin, 2)} logits of the truth's margin; "
            f"{_write_told(told)} points of CHAIR_I in captions of as many objects "
            f"(**{told['verdict']}**)."
        )


def _key_effects(record: Mapping[str, Any]) -> dict[tuple[str, str, str], Any]:
    return {
        (one["name"], one["against"], one["what"]): one for one in record["effects"]
    }


def _tabulate_found(toys: Mapping[str, Any]) -> str:
    rows = []
    for toy, one in toys.items():
        for key, said in (("found as it is", "as it is"), ("found", "planted")):
            found = one[key]
            planted = [
                "{} of {}".format(*found[f"{kind}, planted"]) * (key == "found")
                for kind in ("tower", "language")
            ]
            counts = [str(found[kind]) for kind in ("columns", "tower", "language")]
            rows.append([toy, said, *counts, *planted])
    header = ["toy", "", "columns", "sinks of the tower", "of the language model"]
    return tabulate(
        [*header, "planted in the tower, found", "in the language model, found"], rows
    )


def _tabulate_density(record: Mapping[str, Any]) -> str:
    rows = []
    for columns in COLUMNS:
        bare, own = (record["slopes"][f"{w}{columns}"] for w in ("as it is, ", ""))
        both = [
            record[key][columns] for key in ("correlations", "correlations of captions")
        ]
        rows.append(
            [
                columns,
                write(bare, 2),
                write(own, 2),
                *("no spread" if o["value"] is None else write(o, 2) for o in both),
            ]
        )
    header = ["columns counted", "shallow minus deep, as it is", "with planted sinks"]
    more = ["correlation with error of questions", "with absent objects in captions"]
    return tabulate([*header, *more], rows)


def _tabulate_effects(record: Mapping[str, Any]) -> str:
    cells = _key_effects(record)
    rows = []
    for name, against in dict.fromkeys(key[:2] for key in cells):
        right, false, margin = (cells[name, against, what] for what in SCALE)
        p = f"{right['p_holm']:.3f}" if right.get("p_holm") is not None else ""
        rows.append(
            [
                name,
                against,
                write(right),
                write_toys(right, 1, "+"),
                write(false),
                write(margin, 2),
                p,
                right.get("verdict", ""),
            ]
        )
    header = ["condition", "against", SAID["right"], "by toy", SAID["false"]]
    return tabulate([*header, SAID["margin"], "p (Holm)", "verdict"], rows)


def _write_told(one: Mapping[str, Any], digits: int = 1) -> str:
    """Write a change of captions, which is undefined if some name nothing."""
    return "undefined" if one["value"] is None else write(one, digits)


def _tabulate_told(record: Mapping[str, Any]) -> str:
    cells = _key_effects(record)
    rows = []
    for name, against in dict.fromkeys(key[:2] for key in cells):
        excess, *others, objects = (cells[name, against, what] for what in TOLD)
        p = f"{excess['p_holm']:.3f}" if excess.get("p_holm") is not None else ""
        rows.append(
            [
                name,
                against,
                _write_told(excess),
                write_toys(excess, 1, "+"),
                *map(_write_told, others),
                _write_told(objects, 2),
                p,
                excess.get("verdict", ""),
            ]
        )
    first, *rest = TOLD.values()
    header = ["condition", "against", first, "by toy", *rest]
    return tabulate([*header, "p (Holm)", "verdict"], rows)


@app.command()
def main(
    *,
    out: Annotated[Path | None, typer.Option(help="Where answers are kept.")] = None,
    toy: Annotated[list[str] | None, typer.Option(help="Which toys.")] = None,
    scenes: Annotated[int, typer.Option(help="Scenes of each.")] = N_SCENES,
    only: Annotated[str, typer.Option(help="all, run or page.")] = "all",
    record: Annotated[Path, typer.Option(help="The numbers.")] = RECORD,
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Put EAH's claims, and what sinks do, to the toys by kind of sink."""
    if only not in get_args(Step):
        sys.exit(f"expected --only {', '.join(get_args(Step))}, got {only}")
    if only != "page":
        if out is None:
            sys.exit("expected --out DIR, where answers are kept")
        run = functools.partial(run_toy, out=out, n_scenes=scenes)
        toys = run_toys(toy or TOYS, out, run)
    if only == "all":
        assert out is not None
        summed: dict[str, Any] = {
            "command": "python docs/bench/sink_kinds.py --out DIR",
            "date": datetime.date.today().isoformat(),
            "scenes": scenes,
            "checked": N_CHECKED,
            "versions": list_versions(),
            "toys": {
                name: {key: one[key] for key in ("found", "found as it is", "seconds")}
                for name, one in toys.items()
            },
            **sum_toys(toys, read_captions(out, list(toys))),
        }
        save_bytes(json.dumps(summed, indent=1).encode(), record)
    if only != "run":
        save_bytes(write_page(json.loads(record.read_text())).encode(), page)
        print(f"Written: {page}")


if __name__ == "__main__":
    app()
