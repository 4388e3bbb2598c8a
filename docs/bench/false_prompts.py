"""Say false things to the toys, and ablate the heads that follow: PIH.

    python docs/bench/false_prompts.py --out DIR       # docs/false-prompts.json, .md
    python docs/bench/false_prompts.py --only page     # from docs/false-prompts.json

PIH was found with false counts in the prompt. First the toys are asked whether they
count: scenes with one to four of one object, and prompts that say there are four. Then
prompts name an object that is not there; the heads that `find_prompt_heads` finds on
scenes of the validation split are ablated on scenes of the test split, and so are as
many random heads of the same layers. DIR keeps what each toy answered: whatever stopped
it, the same command goes on with the next toy.
"""

import collections
import datetime
import functools
import itertools
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import transformers
import typer
from methods import ALPHA, K_HEADS, MARGIN, TOYS, Number

import eah_interp as eah
from eah_interp.benchmarks.paired import Draws
from eah_interp.files import save_bytes
from eah_interp.finders import HeadScores, find_prompt_heads
from eah_interp.statistics import adjust_holm, resample_sums
from eah_interp.studies.nulls import RandomDraw
from eah_interp.toy import OBJECTS, Scene, draw_scene, prompt_for, questions_for
from eah_interp.toy.language import ask_for, find_mentions_in, mentions_in

HERE = Path(__file__).parent
RECORD = HERE.parent / "false-prompts.json"
PAGE = HERE.parent / "false-prompts.md"

N_DESCRIBED, N_ASKED = 60, 200
"""Test scenes that are described, and that are asked about: an answer is one token."""

N_COUNTED = 24
"""Scenes of each number of objects."""

N_SEARCHED, N_USED = 300, 40
"""Validation scenes that are looked through, and on how many heads are found."""

N_DRAWS = 3
"""Draws of random heads in the place of those that were found."""

SHALLOW = (0, 1)
"""The layers in which the paper finds most of its heads."""

NUMBERS = (1, 2, 3, 4)

TOLD = 4
"""What prompts say where there are fewer."""

Step = Literal["all", "run", "page"]

Kind = Literal["describe", "ask"]

KINDS: tuple[Kind, ...] = get_args(Kind)

POINTS = ("false", "true", "apart")
"""Measures of answers, in percent of scenes."""

SAID: Mapping[str, str] = {
    "describe": '"Describe the boat."',
    "ask": '"Is there a boat in the image?"',
}

WHERE: Mapping[str, str] = {"all": "all layers", "shallow": "layers 0 and 1"}

_NUMBER = re.compile(r"\d|\b(one|two|three|four|five)\b", re.IGNORECASE)

Answers = dict[str, list[float]]
"""A measure's name, and its number in each scene."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# ---- Does a toy count?


def count(model: Any, *, n_scenes: int) -> Answers:
    """Show a toy one to four of one object, and tell it that there are four."""
    found: Answers = {}
    for n in NUMBERS:
        scenes = [
            draw_scene(seed, objects=[OBJECTS[seed % len(OBJECTS)]] * n)
            for seed in range(n_scenes)
        ]
        names = [scene.objects[0] for scene in scenes]
        prompts = {
            "plain": ["Describe the image."] * n_scenes,
            "asked": [f"How many {name}s are in the image?" for name in names],
        }
        if n < TOLD:
            own = [f"a {name}" for name in names]
            prompts["told a number"] = [f"Describe the four {name}s." for name in names]
            prompts["told four times"] = [
                f"Describe {', '.join([one] * (TOLD - 1))} and {one}." for one in own
            ]
        for key, texts in prompts.items():
            told = _describe(model, scenes, texts)
            named = [
                mentions_in(text).count(name)
                for name, text in zip(names, told, strict=True)
            ]
            found[f"{key}, {n}: named"] = [float(one) for one in named]
            found[f"{key}, {n}: right"] = [float(one == n) for one in named]
            found[f"{key}, {n}: four"] = [float(one == TOLD) for one in named]
            found[f"{key}, {n}: number"] = [
                float(_NUMBER.search(text) is not None) for text in told
            ]
    return found


def _describe(
    model: Any, scenes: Sequence[Scene], prompts: Sequence[str], *, tokens: int = 32
) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(scenes), 50):
        pictures = [scene.pil() for scene in scenes[start : start + 50]]
        asked = list(prompts[start : start + 50])
        texts += model.describe(pictures, asked, max_new_tokens=tokens)
    return texts


# ---- Does it follow a false name? Which heads follow?


@dataclass(frozen=True)
class Asked:
    """Scenes with an object that is there, and one that is likely and is not.

    Attributes:
        scenes: The scenes.
        present: An object of each.
        absent: One that is not there, as an adversarial question asks for.
    """

    scenes: list[Scene]
    present: list[str]
    absent: list[str]

    @classmethod
    def draw(cls, *, split: Literal["validation", "test"], n: int) -> "Asked":
        """Draw the first scenes of a split."""
        scenes = [draw_scene(seed, split=split) for seed in range(n)]
        pairs = [questions_for(one, sampling="adversarial") for one in scenes]
        there, missing = ([pair[k].object for pair in pairs] for k in (0, 1))
        return cls(scenes, there, missing)

    def keep(self, places: Sequence[int]) -> "Asked":
        """Keep some of them."""
        parts = (self.scenes, self.present, self.absent)
        return Asked(*([part[place] for place in places] for part in parts))


def write_prompt(kind: Kind, name: str) -> str:
    """Write a prompt that takes an object for granted, or asks for it."""
    return f"Describe the {name}." if kind == "describe" else ask_for(name)


def follow(model: Any, kind: Kind, asked: Asked, names: Sequence[str]) -> list[float]:
    """Tell which answers follow a prompt: name the object, or say yes."""
    tokens = 32 if kind == "describe" else 2
    prompts = [write_prompt(kind, name) for name in names]
    texts = _describe(model, asked.scenes, prompts, tokens=tokens)
    if kind == "ask":
        return [float(text.startswith("Yes")) for text in texts]
    pairs = zip(names, texts, strict=True)
    return [float(name in mentions_in(text)) for name, text in pairs]


def begin_answer(model: Any, asked: Asked) -> str:
    """Find how a toy's descriptions begin, up to the first object."""
    prompts = [write_prompt("describe", name) for name in asked.absent]
    begun = collections.Counter(
        text[: found[0][1]].rstrip()
        for text in _describe(model, asked.scenes, prompts)
        if (found := find_mentions_in(text))
    )
    return begun.most_common(1)[0][0]


def list_margins(
    kind: Kind, asked: Asked, begun: str, *, neutral: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """List prompts, the word that each tells, and the true one.

    A description is read where its first object stands: its answer is begun.
    """
    n = len(asked.scenes)
    if kind == "ask":
        texts = [prompt_for(write_prompt(kind, name)) for name in asked.absent]
        return texts, ["Yes"] * n, ["No"] * n
    said = [
        "Describe the image." if neutral else write_prompt(kind, name)
        for name in asked.absent
    ]
    return [f"{prompt_for(one)} {begun}" for one in said], asked.absent, asked.present


def read_margins(
    model: Any, kind: Kind, asked: Asked, begun: str, *, neutral: bool = False
) -> list[float]:
    """Read by how much the told word's logit lies above the true one's."""
    prompts, *pair = list_margins(kind, asked, begun, neutral=neutral)
    tokenizer = model.tokenizer
    told, true = (
        torch.tensor(
            [
                tokenizer.convert_tokens_to_ids(tokenizer.tokenize(f"a {word}")[1])
                for word in words
            ]
        )
        for words in pair
    )
    with torch.no_grad(), model.trace([s.pil() for s in asked.scenes], prompts):
        logits = model.output.logits[:, -1].save()
    rows = torch.arange(len(told))
    margins = logits[rows, told] - logits[rows, true]
    return [float(one) for one in margins]


def find_heads(
    model: Any, kind: Kind, begun: str, *, n_searched: int, n_used: int
) -> tuple[HeadScores, float]:
    """Find a toy's heads, on validation scenes; and the share that followed.

    Of questions those whose answer was a false yes; few descriptions follow, so that
    any are taken.
    """
    asked = Asked.draw(split="validation", n=n_searched)
    if kind == "ask":
        followed = follow(model, kind, asked, asked.absent)
        places = [place for place, one in enumerate(followed) if one]
        share = len(places) / len(followed)
        asked = asked.keep(places[:n_used])
    else:
        asked = asked.keep(range(min(n_used, n_searched)))
        followed = follow(model, kind, asked, asked.absent)
        share = sum(followed) / len(followed)
    prompts, told, true = list_margins(kind, asked, begun)
    pictures = [scene.pil() for scene in asked.scenes]
    found = find_prompt_heads(model, pictures, prompts, told=told, true=true)
    return found, share


def choose(found: HeadScores, where: str) -> tuple[tuple[int, int], ...]:
    """Choose the foremost heads, of all layers or of the first two."""
    ranked = found.top(found.mean.numel()).pairs
    fit = [pair for pair in ranked if where == "all" or pair[0] in SHALLOW]
    return tuple(fit[:K_HEADS])


def run_toy(
    toy: str, *, scenes: Mapping[Kind, int], counted: int, searched: int
) -> dict[str, Any]:
    """Ask a toy everything."""
    started = time.process_time()
    model = eah.load(f"toy:{toy}")
    answers = {"counted": count(model, n_scenes=counted)}
    begun = begin_answer(model, Asked.draw(split="validation", n=N_USED))
    asked = Asked.draw(split="test", n=scenes["describe"])
    neutral = _describe(
        model, asked.scenes, ["Describe the image."] * len(asked.scenes)
    )
    named = [mentions_in(text) for text in neutral]
    answers["neutral"] = {
        key: [float(one in some) for one, some in zip(words, named, strict=True)]
        for key, words in (("false", asked.absent), ("true", asked.present))
    }
    heads: dict[str, Any] = {}
    for kind in KINDS:
        asked = Asked.draw(split="test", n=scenes[kind])
        found, share = find_heads(
            model, kind, begun, n_searched=searched, n_used=N_USED
        )
        answers[f"{kind}: plain"] = ask_all(model, kind, asked, begun)
        table = found.frame()
        heads[kind] = {
            "items": found.n_items,
            "followed": share,
            "p": found.p_value(),
            "significant": list(found.significant()),
            "stability": [
                float(table[name][0])
                for name in ("stability", "stability_low", "stability_high")
            ],
            "shallow of 10": int((table.layer[:10] <= max(SHALLOW)).sum()),
        }
        for where in WHERE:
            pih = eah.PIH(heads=choose(found, where))
            heads[kind][where] = [list(pair) for pair in pih.pairs]
            drawn = [
                RandomDraw("heads", draw).replace(
                    pih, n_heads=model.n_heads, items=range(scenes[kind])
                )
                for draw in range(N_DRAWS)
            ]
            for name, patch in (("found", pih), *enumerate(drawn)):
                twin = eah.edit(model, patch)
                key = f"{kind}: {where}, {name}"
                answers[key] = ask_all(twin, kind, asked, begun)
    return {
        "begun": begun,
        "heads": heads,
        "answers": answers,
        "seconds": round(time.process_time() - started, 1),
    }


def ask_all(model: Any, kind: Kind, asked: Asked, begun: str) -> Answers:
    """Put false and true prompts to a toy, plain or ablated."""
    found = {
        "false": follow(model, kind, asked, asked.absent),
        "true": follow(model, kind, asked, asked.present),
        "margin": read_margins(model, kind, asked, begun),
    }
    if kind == "describe":
        plain = read_margins(model, kind, asked, begun, neutral=True)
        pairs = zip(found["margin"], plain, strict=True)
        found["rise"] = [told - bare for told, bare in pairs]
    return found


# ---- Sums over scenes and toys.


def estimate(tables: Sequence[Sequence[float]], *, scale: float = 100.0) -> Any:
    """Estimate a mean over scenes and toys, whose scenes are the same."""
    found = resample_sums(
        torch.tensor(tables, dtype=torch.float64).T,
        resamples=Draws().resamples,
        seed=Draws().seed,
    )
    number = Number(
        scale * found.whole / found.n, scale * found.drawn.T / found.n, found.n
    )
    return {**number.estimate(), "toys": number.whole.tolist()}


def subtract(one: Sequence[float], *others: Sequence[float]) -> list[float]:
    """Subtract, scene by scene, the mean of some from one."""
    means = [sum(rest) / len(rest) for rest in zip(*others, strict=True)]
    return [own - mean for own, mean in zip(one, means, strict=True)]


class Summed:
    """What all toys answered: means over toys, and changes of the same scenes."""

    def __init__(self, toys: Mapping[str, Mapping[str, Any]]) -> None:
        self.answers = [_tell_apart(one["answers"]) for one in toys.values()]

    def of(self, cell: str, name: str, *, scale: float = 100.0) -> dict[str, Any]:
        """Estimate a measure."""
        tables = [one[cell][name] for one in self.answers]
        return estimate(tables, scale=scale)

    def change(
        self,
        own: tuple[str, str],
        *others: tuple[str, str],
        scale: float = 100.0,
    ) -> dict[str, Any]:
        """Estimate by how much a measure lies above the mean of others."""
        tables = [
            subtract(one[own[0]][own[1]], *(one[cell][name] for cell, name in others))
            for one in self.answers
        ]
        return estimate(tables, scale=scale)


def _tell_apart(answers: Mapping[str, Answers]) -> dict[str, Answers]:
    """Add by how much true prompts are followed more than false ones."""
    found = {}
    for cell, own in answers.items():
        both = "true" in own and "false" in own
        apart = {"apart": subtract(own["true"], own["false"])} if both else {}
        found[cell] = {**own, **apart}
    return found


def sum_toys(toys: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sum what all toys answered."""
    summed = Summed(toys)
    effects = list(_list_effects(summed))
    decided = [one for one in effects if one["decides"]]
    known = [one for one in decided if one["p"] is not None]
    adjusted = adjust_holm([one["p"] for one in known])
    for one, p in zip(known, adjusted, strict=True):
        one["p_holm"] = p
    for one in decided:
        one["verdict"] = judge(one)
    return {
        "counted": _sum_counts(summed),
        "followed": _sum_followed(summed),
        "effects": effects,
    }


def _sum_counts(summed: Summed) -> dict[str, Any]:
    found = {}
    for n in NUMBERS:
        told = ["told a number", "told four times"] if n < TOLD else []
        for key in ("plain", "asked", *told):
            cell = f"{key}, {n}"
            found[f"{cell}: named"] = summed.of("counted", f"{cell}: named", scale=1)
            for name in ("right", "four", "number"):
                found[f"{cell}: {name}"] = summed.of("counted", f"{cell}: {name}")
        for key in told:
            found[f"{key}, {n}: more"] = summed.change(
                ("counted", f"{key}, {n}: named"),
                ("counted", f"plain, {n}: named"),
                scale=1,
            )
    most, least = (f"plain, {n}: named" for n in (NUMBERS[-1], NUMBERS[0]))
    found["rise"] = summed.change(("counted", most), ("counted", least), scale=1)
    return found


def _sum_followed(summed: Summed) -> dict[str, Any]:
    cells = {"neutral": "neutral"} | {kind: f"{kind}: plain" for kind in KINDS}
    found = {
        f"{key}: {name}": summed.of(cell, name)
        for key, cell in cells.items()
        for name in ("false", "true")
    }
    for name in ("false", "true"):
        found[f"describe: led, {name}"] = summed.change(
            ("describe: plain", name), ("neutral", name)
        )
    found["describe: rise"] = summed.of("describe: plain", "rise", scale=1)
    return found


def _list_effects(summed: Summed) -> Iterator[dict[str, Any]]:
    for kind, where in itertools.product(KINDS, WHERE):
        own = f"{kind}: {where}, found"
        drawn = [f"{kind}: {where}, {draw}" for draw in range(N_DRAWS)]
        names = ["false", "true", "apart", "margin"]
        names += ["rise"] if kind == "describe" else []
        against = {"random": drawn, "plain": [f"{kind}: plain"]}
        for (base, others), name in itertools.product(against.items(), names):
            scale = 100 if name in POINTS else 1
            changed = summed.change(
                (own, name), *((other, name) for other in others), scale=scale
            )
            yield {
                "kind": kind,
                "where": where,
                "against": base,
                "what": name,
                "decides": name in ("false", "apart") and base == "random",
                **changed,
            }


def judge(one: Mapping[str, Any]) -> str:
    """Judge a change of following against that with random heads."""
    if one["low"] is None:
        return "cannot be told"
    if one["p_holm"] < ALPHA:
        return "lower" if one["value"] < 0 else "higher"
    return "no lower" if one["low"] > -MARGIN else "cannot be told"


# ---- The page.


HEAD = """# False prompts on the toy

Made by `python docs/bench/false_prompts.py`; not edited by hand. Its numbers are in
`docs/false-prompts.json`.

PIH ([the ledger's entry](claims.md#prompt-induced-hallucination-heads)) says that a few
heads, mostly of layers 0 and 1, make a model follow a false *count* in its prompt, and
that it follows much less without them. A toy of twenty objects has to be asked first
whether it counts; then the same is tried with false *names*. Intervals are of the mean
over {toys} toys ({names}), for other scenes and other toys of the recipe: with three
toys they are wide wherever toys differ. "By toy" has each toy's own.
"""

COUNTED = """## Does it count?

Scenes with one to four of one object and nothing else, {counted} of each number, every
object in turn. No word for a number is among the toys', so that one is read letter by
letter; but their sentences can name an object again: "a boat and a boat".
"""

FOLLOWED = """## Does it follow a false name?

{described} scenes of the test split to be described and {asked} to be asked about,
each with an object that is there and one that is
not: those of an adversarial question. A description follows its prompt if it names the
object, an answer if it is "Yes".
"""

HEADS = """## Which heads follow?

`find_prompt_heads` on scenes of the validation split: of questions those with a false
yes, of descriptions any, since few follow. A description is read where
its first object stands, its answer begun as the toy begins most of them. p is that of
the foremost head, with all heads allowed for; "shallow" counts the heads of layers 0
and 1 among the ten foremost; chance alone gives {chance:.1f}.
"""

EFFECTS = """## What becomes of it without them

The {k} foremost heads, of all layers or of layers 0 and 1 alone, return their mean over
the prompt (`PIH`), on the test scenes. Against as many random heads of the same layers
({draws} draws), and against the model as it is. Margins are logits of the told word
above the true one; "rise" is the margin beyond that after "Describe the image.". "True
minus false" tells whether prompts are told apart: who says no to everything follows
nothing, and tells nothing apart. Only the rows with a verdict decide; their p is Holm's
over these. *No lower*: a fall of {margin:g} point or more lies outside of the interval.
"""

WHAT = {
    "false": "followed, false prompt (points)",
    "true": "followed, true prompt (points)",
    "apart": "true minus false (points)",
    "margin": "margin (logits)",
    "rise": "rise of the margin (logits)",
}


def write_page(record: Mapping[str, Any]) -> str:
    """Write the page from the record."""
    toys = record["toys"]
    n_layers = record["layers"]
    facts = [
        f"- command: `{record['command']}`",
        f"- date: {record['date']}",
        *(f"- {toy}: {one['seconds'] / 60:.0f} minutes" for toy, one in toys.items()),
        *(f"- {name}: {value}" for name, value in record["versions"].items()),
    ]
    parts = [
        HEAD.format(toys=len(toys), names=", ".join(f"`{toy}`" for toy in toys)),
        "## In short\n",
        "\n".join(f"- {one}" for one in _sum_up(record)) + "\n",
        COUNTED.format(counted=record["counted_scenes"]),
        _tabulate_counts(record["counted"]) + "\n",
        FOLLOWED.format(
            described=record["scenes"]["describe"], asked=record["scenes"]["ask"]
        ),
        _tabulate_followed(record["followed"]) + "\n",
        HEADS.format(chance=10 * len(SHALLOW) / n_layers),
        _tabulate_heads(toys) + "\n",
        EFFECTS.format(k=K_HEADS, draws=N_DRAWS, margin=MARGIN),
        _tabulate_effects(record["effects"]) + "\n",
        "## How it was made\n",
        "\n".join(facts) + "\n",
    ]
    return "\n".join(parts)


def _sum_up(record: Mapping[str, Any]) -> Iterator[str]:
    counted, followed = record["counted"], record["followed"]
    asked = max(counted[f"asked, {n}: number"]["value"] for n in NUMBERS)
    right = ", ".join(f"{counted[f'plain, {n}: right']['value']:.0f}" for n in NUMBERS)
    yield (
        f"Asked how many there are, the toys say a number in {asked:.0f} % of answers "
        f"at most. Of one, two, three and four they name the object as often as it is "
        f"there in {right} % of descriptions; four are named {write(counted['rise'])} "
        "times more often than one."
    )
    more = ", ".join(
        f"{write(counted[f'{key}, 2: more'])} ({said})"
        for key, said in (
            ("told a number", "as a number"),
            ("told four times", "as four names"),
        )
    )
    yield f"Told of four where there are two, they name it more often by {more}."
    led = followed["describe: led, false"]
    yield (
        "Told to describe what is not there, they name it in "
        f"{_plain(followed['describe: false'])} % of descriptions; unasked in "
        f"{_plain(followed['neutral: false'])} %: {write(led)} points. Asked for it, "
        f"they say yes in {_plain(followed['ask: false'])} %."
    )
    effects = {
        (one["kind"], one["where"], one["against"], one["what"]): one
        for one in record["effects"]
    }
    for kind, where in itertools.product(KINDS, WHERE):
        false, true, apart = (effects[kind, where, "random", name] for name in POINTS)
        yield (
            f"Without the {K_HEADS} foremost heads of {WHERE[where]} ({SAID[kind]}), "
            f"against random ones: {write(false)} points of false prompts followed "
            f"(**{false['verdict']}**), {write(true)} of true ones, {write(apart)} "
            f"of true minus false (**{apart['verdict']}**)."
        )


def write(one: Mapping[str, Any], digits: int = 1) -> str:
    """Write a change with its interval."""
    if one["low"] is None:
        return f"{one['value']:+.{digits}f} (undetermined)"
    parts = (f"{one[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*parts)


def _plain(one: Mapping[str, Any], digits: int = 1) -> str:
    if one["low"] is None:
        return f"{one['value']:.{digits}f}"
    parts = (f"{one[key]:.{digits}f}" for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*parts)


def write_toys(one: Mapping[str, Any], digits: int = 1, sign: str = "") -> str:
    """Write each toy's own number."""
    return ", ".join(f"{value:{sign}.{digits}f}" for value in one["toys"])


def tabulate(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _tabulate_counts(counted: Mapping[str, Any]) -> str:
    rows = []
    for key, said in (
        ("plain", '"Describe the image."'),
        ("told a number", '"Describe the four boats."'),
        ("told four times", '"Describe a boat, a boat, a boat and a boat."'),
        ("asked", '"How many boats are in the image?"'),
    ):
        for n in NUMBERS:
            if f"{key}, {n}: named" not in counted:
                continue
            one = {
                name: counted[f"{key}, {n}: {name}"]
                for name in ("named", "right", "four", "number")
            }
            named = f"{_plain(one['named'], 2)} ({write_toys(one['named'], 2)})"
            shares = [f"{one[x]['value']:.1f}" for x in ("right", "four", "number")]
            rows.append([said, str(n), named, *shares])
    header = ["prompt", "there are", "named, times (by toy)", "named as often, %"]
    return tabulate([*header, "named four times, %", "a number said, %"], rows)


def _tabulate_followed(followed: Mapping[str, Any]) -> str:
    rows = []
    for key, said in (("neutral", '"Describe the image."'), *SAID.items()):
        for name, there in (("false", "no"), ("true", "yes")):
            one = followed[f"{key}: {name}"]
            rows.append([said, there, _plain(one), write_toys(one)])
    header = ["prompt", "the object is there", "named, or yes, %", "by toy"]
    told = followed["describe: rise"]
    return (
        f"{tabulate(header, rows)}\n\n"
        "The first object of a begun description: the false name's logit rises over "
        f"the true one's by {write(told, 2)} ({write_toys(told, 2, '+')}) beyond that "
        'after "Describe the image.".'
    )


def _tabulate_heads(toys: Mapping[str, Any]) -> str:
    rows = []
    for toy, one in toys.items():
        for kind in KINDS:
            found = one["heads"][kind]
            first, shallow = (
                " ".join(f"L{layer}H{head}" for layer, head in found[where])
                for where in WHERE
            )
            low = "{:.2f} [{:.2f}, {:.2f}]".format(*found["stability"])
            rows.append(
                [
                    toy,
                    SAID[kind],
                    f"{found['items']} ({100 * found['followed']:.0f} % followed)",
                    first,
                    shallow,
                    f"{found['p']:.3f}",
                    str(len(found["significant"])),
                    low,
                    str(found["shallow of 10"]),
                ]
            )
    return tabulate(
        [
            "toy",
            "prompt",
            "items",
            "foremost",
            "foremost of layers 0, 1",
            "p",
            "heads below 0.05",
            "stability",
            "shallow of 10",
        ],
        rows,
    )


def _tabulate_effects(effects: Sequence[Mapping[str, Any]]) -> str:
    against = {"random": "random heads", "plain": "the model as it is"}
    rows = []
    for one in effects:
        digits = 1 if one["what"] in POINTS else 2
        p = f"{one['p_holm']:.3f}" if one.get("p_holm") is not None else ""
        rows.append(
            [
                SAID[one["kind"]],
                WHERE[one["where"]],
                against[one["against"]],
                WHAT[one["what"]],
                write(one, digits),
                write_toys(one, digits, "+"),
                p,
                one.get("verdict", ""),
            ]
        )
    header = ["prompt", "heads of", "against", "what", "change", "by toy", "p (Holm)"]
    return tabulate([*header, "verdict"], rows)


def run_toys(
    names: Sequence[str], out: Path, run: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Run toys that have no answers in a folder yet, and read those of all."""
    toys = {}
    for name in names:
        known = out / f"{name}.json"
        if not known.exists():
            out.mkdir(parents=True, exist_ok=True)
            save_bytes(json.dumps(run(name)).encode(), known)
        toys[name] = json.loads(known.read_text())
    return toys


def list_versions() -> dict[str, str]:
    """Say on what a run was made."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
        "processor": platform.machine(),
    }


@app.command()
def main(
    *,
    out: Annotated[Path | None, typer.Option(help="Where answers are kept.")] = None,
    toy: Annotated[list[str] | None, typer.Option(help="Which toys.")] = None,
    described: Annotated[
        int, typer.Option(help="Scenes to be described.")
    ] = N_DESCRIBED,
    asked: Annotated[int, typer.Option(help="Scenes to be asked about.")] = N_ASKED,
    counted: Annotated[int, typer.Option(help="Scenes of each number.")] = N_COUNTED,
    searched: Annotated[
        int, typer.Option(help="Scenes to find heads on.")
    ] = N_SEARCHED,
    only: Annotated[str, typer.Option(help="all, run or page.")] = "all",
    record: Annotated[Path, typer.Option(help="The numbers.")] = RECORD,
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Say false things to the toys."""
    if only not in get_args(Step):
        sys.exit(f"expected --only {', '.join(get_args(Step))}, got {only}")
    scenes: dict[Kind, int] = {"describe": described, "ask": asked}
    if only != "page":
        if out is None:
            sys.exit("expected --out DIR, where answers are kept")
        given: dict[str, Any] = {"scenes": scenes, "counted": counted}
        run = functools.partial(run_toy, **given, searched=searched)
        toys = run_toys(toy or TOYS, out, run)
    if only == "all":
        summed: dict[str, Any] = {
            "command": "python docs/bench/false_prompts.py --out DIR",
            "date": datetime.date.today().isoformat(),
            "scenes": scenes,
            "counted_scenes": counted,
            "layers": eah.load(f"toy:{next(iter(toys))}").n_layers,
            "versions": list_versions(),
            "toys": {
                name: {key: one[key] for key in ("begun", "heads", "seconds")}
                for name, one in toys.items()
            },
            **sum_toys(toys),
        }
        save_bytes(json.dumps(summed, indent=1).encode(), record)
    if only != "run":
        save_bytes(write_page(json.loads(record.read_text())).encode(), page)
        print(f"Written: {page}")


if __name__ == "__main__":
    app()
