"""Write `docs/toy.md`: every number from the record, every verdict by a stated rule."""

from pathlib import Path
from typing import Any

import jinja2
from conditions import BETAS, CONTROLS, DONORS, PAIR, RECIPIENTS, name_of

from eah_interp.statistics import write_undetermined
from eah_interp.toy import TOYS

_QUALITY = (
    ("yes/no accuracy, random", "random", "accuracy"),
    ("yes/no accuracy, popular", "popular", "accuracy"),
    ("yes/no accuracy, adversarial", "adversarial", "accuracy"),
    ("yes/no accuracy, all", "all", "accuracy"),
    ("false positives, random", "random", "false_positives"),
    ("false positives, adversarial", "adversarial", "false_positives"),
    ("caption recall", "captions", "recall"),
    ("CHAIR_S", "captions", "chair_s"),
    ("CHAIR_I", "captions", "chair_i"),
    ("mentions in a caption", "captions", "mentions"),
)
_METRICS = (
    "CHAIR_S",
    "CHAIR_S, length-matched",
    "CHAIR_I",
    "false positives",
    "recall",
    "mentions per 100 captions",
    "repeats per 100 captions",
)


def show(effect: dict[str, Any] | None, *, digits: int = 1, of: str = "scenes") -> str:
    """Write a change and its interval."""
    if effect is None:
        return "undefined"
    if effect["low"] is None:
        return write_undetermined(
            effect["estimate"], n=effect["n"], digits=digits, of=of
        )
    parts = (effect["estimate"], effect["low"], effect["high"])
    mean, low, high = (f"{value:+.{digits}f}" for value in parts)
    return f"{mean} [{low}, {high}]"


def show_level(effect: dict[str, Any]) -> str:
    """Write a level, which has no sign, and its interval."""
    if effect["low"] is None:
        return f"{effect['estimate']:.1f} in all {effect['n']} scenes"
    return f"{effect['estimate']:.1f} [{effect['low']:.1f}, {effect['high']:.1f}]"


def judge(found: dict[str, Any]) -> str:
    """Say which way a contrast goes: the interval over scenes, and every toy's sign."""
    effect = found["over_scenes"]
    if effect is None:
        return "undefined"
    if effect["low"] is None or effect["low"] <= 0 <= effect["high"]:
        return "no difference shown"
    way = "higher" if effect["estimate"] > 0 else "lower"
    same = len({run["estimate"] > 0 for run in found["each_run"]}) == 1
    return f"{way}, in all three toys" if same else f"{way}, not in every toy"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_page(record: dict[str, Any]) -> str:
    """Write the whole page."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(
        loader=folder, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    toy = record["toys"]["seed-0"]
    recipe = toy["recipe"]
    n_layers = recipe["architecture"]["n_layers"]
    single = [(layer,) for layer in range(n_layers)]
    fewer = [*(f"L1 to {n} heads" for n in RECIPIENTS), "L1 densest"]
    scored = [*(f"L1 beta {beta}" for beta in BETAS), "L1 paper", "L0+1 paper"]
    return pages.get_template("card.md.jinja").render(
        toy=toy,
        toys=[f"`{name}`" for name in TOYS],
        recipe=recipe,
        sizes=recipe["architecture"],
        world=recipe["world"],
        grid=recipe["world"]["image_size"] // recipe["world"]["patch_size"],
        percent=lambda share: f"{100 * share:.0f} %",
        n_evaluated=round(toy["evaluation"]["test"]["captions"]["n"]),
        summary=_summary(record, single),
        scenes=record["scenes"],
        command=record["command"],
        hardware=record["hardware"],
        versions=", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        n_conditions=len(record["effects"]) + 1,
        training=_training(record),
        quality=_quality(record),
        prior=_prior(record),
        sinks=_sinks(record),
        depth=_depth(record),
        correlation=_correlation(record),
        donors=_effects(
            record, [name_of(at, donor) for at in ((1,), PAIR) for donor in DONORS]
        ),
        layers=_effects(record, [name_of(at, "densest") for at in single]),
        contrasts=_contrasts(record, [*single, PAIR], "CHAIR_S"),
        contrasts_yes=_contrasts(record, [*single, PAIR], "false positives"),
        choices=_effects(record, [*fewer, *scored]),
    )


def _training(record: dict[str, Any]) -> str:
    rows = []
    for name, log in record["toys"].items():
        on = log["hardware"]
        where = f"{on['device']}, {on['processor']}, {on['threads']} thread(s)"
        minutes = f"{log['minutes']:.0f}"
        rows.append([f"`{name}`", f"`{log['command']}`", minutes, where])
    return table(["toy", "command", "minutes", "on"], rows)


def _quality(record: dict[str, Any]) -> str:
    rows = []
    for label, kind, metric in _QUALITY:
        cells = [label]
        for log in record["toys"].values():
            both = [log["evaluation"][s][kind][metric] for s in ("validation", "test")]
            cells.append(" / ".join(f"{value:.1f}" for value in both))
        rows.append(cells)
    return table(["validation / test", *(f"`{n}`" for n in record["toys"])], rows)


def _prior(record: dict[str, Any]) -> str:
    strong, weak = (
        record["toys"][name]["recipe"]["world"]["prior"]
        for name in ("seed-0", "low-prior")
    )
    rows = []
    for metric, found in record["prior"].items():
        if metric not in record["plain"]["seeds"]:
            continue
        seeds = ", ".join(f"{v:.1f}" for v in record["plain"]["seeds"][metric])
        low = f"{record['plain']['low-prior'][metric][0]:.1f}"
        effects = [show(found["over_scenes"]), show(found["over_runs"], of="toys")]
        rows.append([metric, seeds, low, *effects, judge(found)])
    head = ["", f"prior {strong}, three seeds", f"prior {weak}"]
    head += ["change [over scenes]", "change [over seeds]", "weak against strong"]
    return table(head, rows)


def _sinks(record: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['definition']}, beta {row['beta']:g}",
            str(row["layer"]),
            show_level(row["mean head"]),
            ", ".join(f"{value:.0f}" for value in row["mean head, each run"]),
            show_level(row["densest head"]),
            show_level(row["dense heads"]),
        ]
        for row in record["sinks"]
    ]
    head = ["definition", "layer", "mean head", "each toy"]
    return table([*head, "densest head", "dense heads"], rows)


def _depth(record: dict[str, Any]) -> str:
    rows = [
        [
            key,
            show(found["over_runs"], of="toys"),
            ", ".join(f"{v:+.1f}" for v in found["each_run"]),
        ]
        for key, found in record["early against deep"].items()
    ]
    return table(["definition", "over seeds", "each toy"], rows)


def _correlation(record: dict[str, Any]) -> str:
    rows = []
    for key, found in record["density and hallucination"].items():
        for label in ("raw", "within object count"):
            runs = "; ".join(show(effect, digits=2) for effect in found[label])
            over = show(found[f"{label}, over runs"], digits=2, of="toys")
            rows.append([key, label, runs, over])
    return table(["visible", "scenes", "each toy [over scenes]", "over seeds"], rows)


def _effects(record: dict[str, Any], names: list[str]) -> str:
    rows = []
    for name in names:
        found = record["effects"][name]
        cells = [show(found[metric]["over_scenes"]) for metric in _METRICS]
        over = show(found["CHAIR_S"]["over_runs"], of="toys")
        matched = judge(found["CHAIR_S, length-matched"])
        rows.append([name, *cells, over, judge(found["CHAIR_S"]), matched])
    head = ["condition", *_METRICS, "CHAIR_S [over seeds]", "CHAIR_S is"]
    return table([*head, "length-matched it is"], rows)


def _contrasts(record: dict[str, Any], places: list[Any], metric: str) -> str:
    rows = []
    for at in places:
        found = record["donors"][name_of(at, "densest")]
        cells = [show(found[control][metric]["over_scenes"]) for control in CONTROLS]
        rows.append([f"L{'+'.join(map(str, at))}", *cells])
    return table(["layer", *CONTROLS], rows)


def _summary(record: dict[str, Any], single: list[tuple[int, ...]]) -> str:
    """Say in a table what became of each claim; by the rule of `judge`."""
    effects = record["effects"]
    method = effects["L1 densest"]
    depth = record["early against deep"]
    link = record["density and hallucination"]["beta 1"]
    densest = record["donors"]["L1 densest"]
    ranks: dict[str, list[str]] = {}
    for control in CONTROLS:
        verdict = judge(densest[control]["CHAIR_S"]).split(",")[0]
        ranks.setdefault(verdict, []).append(control)
    lowered = {
        metric: [
            f"L{at[0]}"
            for at in single
            if judge(effects[name_of(at, "densest")][metric]).startswith("lower")
        ]
        for metric in ("CHAIR_S", "CHAIR_S, length-matched")
    }
    heads = [f"L1 to {n} heads" for n in RECIPIENTS] + ["L1 densest"]
    rows = [
        [
            "1. early layers are denser",
            f"{key}: {show(found['over_runs'], of='toys')} points",
        ]
        for key, found in depth.items()
    ]
    rows += [
        [
            "2. denser, fewer hallucinations",
            "correlation "
            + show(link["within object count, over runs"], digits=2, of="toys"),
        ],
        *(
            [
                f"3. L1 densest, {metric}",
                f"{show(method[metric]['over_scenes'])} points: "
                f"{judge(method[metric])}",
            ]
            for metric in (*_METRICS[:2], *_METRICS[3:])
        ),
        [
            "3. CHAIR_S of the densest donor against controls",
            "; ".join(f"{k} than {', '.join(v)}" for k, v in ranks.items()).replace(
                "no difference shown than", "no difference shown from"
            ),
        ],
        *(
            [f"3. layers that lower {metric}", ", ".join(layers) or "none"]
            for metric, layers in lowered.items()
        ),
        [
            "4. CHAIR_S by number of recipients (2, 4, 6, all)",
            "; ".join(show(effects[name]["CHAIR_S"]["over_scenes"]) for name in heads),
        ],
    ]
    return table(["claim", "what is seen, with 95 % interval"], rows)
