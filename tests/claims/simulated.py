"""Made outputs of worlds in which it is known what a method does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eah_interp.benchmarks.compare import compare
from eah_interp.benchmarks.metrics import count_yes_no
from eah_interp.benchmarks.outputs import OutputFile, Outputs
from eah_interp.benchmarks.paired import Draws
from eah_interp.studies.claims import judge
from eah_interp.studies.ledger import ClaimTest, find_change

N_IMAGES = 200
THERE = tuple(f"there{n}" for n in range(24))
"""More than any caption names: a caption does not end for want of objects."""
ABSENT = tuple(f"absent{n}" for n in range(30))

CAPTIONS = (
    ClaimTest(task="caption", metric="CHAIR_S", expected="below zero", matched=True),
)
ANSWERS = (ClaimTest(task="yes_no", metric="accuracy", expected="above zero"),)


def name_objects(rng, truth, *, length, risk, again=0.0, by_words=False):
    """Name objects one after the other, and some of them again.

    Later ones are riskier: by how many others were named before, or by the place.
    """
    named = []
    for place in range(length):
        if named and rng.random() < again:
            named.append(named[rng.integers(len(named))])
            continue
        before = place if by_words else len(set(named))
        absent = rng.random() < risk * (0.3 + 0.15 * before)
        left = [n for n in (ABSENT if absent else truth) if n not in named]
        if left:
            named.append(left[rng.integers(len(left))])
    return named


def caption_table(rng, truths, *, mean, **more):
    """Make captions of all images."""
    rows = []
    for image, truth in enumerate(truths):
        length = 1 + rng.poisson(mean)
        named = name_objects(rng, truth, length=length, **more)
        rows.append(
            {
                "item": str(image),
                "cluster": str(image),
                "condition": "",
                "mentions": named,
                "truth": list(truth),
                "caption": " ".join(named),
                "n_tokens": len(named),
            }
        )
    return pd.DataFrame(rows)


def compare_captions(rng, *, few=False, **changes):
    """Make captions without and with a method, of images of many objects or few."""
    truths = [
        tuple(rng.permutation(THERE)[: rng.integers(3, 9) if few else 18])
        for _ in range(N_IMAGES)
    ]
    base = {"mean": 5.0, "risk": 0.35}
    return "caption", (
        caption_table(rng, truths, **base),
        caption_table(rng, truths, **(base | changes)),
    )


def compare_answers(rng, *, better=0.0, to_no=0.0):
    """Make answers to six questions an image, half of them about absent objects."""
    present = np.tile([True, False], 3 * N_IMAGES)
    images = np.repeat(np.arange(N_IMAGES), 6)
    ease = np.repeat(rng.normal(0, 0.08, N_IMAGES), 6)
    tables = []
    for gain, turned in ((0.0, 0.0), (better, to_no)):
        right = rng.random(len(present)) < np.clip(0.78 + ease + gain, 0, 1)
        yes = np.where(right, present, ~present)
        yes &= rng.random(len(yes)) >= turned
        table = count_yes_no(
            pd.Series(yes), pd.Series(present), pd.Series(np.zeros(len(yes), bool))
        )
        tables.append(
            table.assign(
                item=[str(n) for n in range(len(yes))],
                cluster=images.astype(str),
                condition="",
            )
        )
    return "yes_no", tuple(tables)


@dataclass(frozen=True)
class World:
    """What a method does, and what should be said of the claim that it helps.

    Attributes:
        make: Outputs without and with it.
        right: The right verdict.
    """

    make: Callable
    right: str


WORLDS = {
    "captions: fewer absent objects at every length": World(
        lambda rng: compare_captions(rng, risk=0.12), "holds"
    ),
    "captions: more absent objects at every length": World(
        lambda rng: compare_captions(rng, risk=0.65), "does not hold"
    ),
    "captions: nothing": World(compare_captions, "cannot be told"),
    "captions: fewer objects, as risky as before": World(
        lambda rng: compare_captions(rng, mean=2.0), "cannot be told"
    ),
    "captions: the same objects again and again": World(
        lambda rng: compare_captions(rng, again=0.6), "cannot be told"
    ),
    "answers: more of them right": World(
        lambda rng: compare_answers(rng, better=0.08), "holds"
    ),
    "answers: nothing": World(compare_answers, "cannot be told"),
    "answers: one yes in four turned to no": World(
        lambda rng: compare_answers(rng, to_no=0.25), "does not hold"
    ),
}

LIMITS = {
    "captions: fewer objects, of images that have few": World(
        lambda rng: compare_captions(rng, mean=2.0, few=True), "cannot be told"
    ),
    "captions: the same again and again, riskier by words": World(
        lambda rng: compare_captions(rng, again=0.6, by_words=True), "cannot be told"
    ),
}
"""What matching on objects does not take away; see the page."""


def judge_world(world, seed, *, resamples=500):
    """Make a world's outputs, compare them, and judge."""
    task, tables = world.make(np.random.default_rng(seed))
    files = tuple(
        OutputFile(name=name, path=name, sha256="0" * 64, n=len(table))
        for name, table in zip(("base", "patched"), tables, strict=True)
    )
    outputs = Outputs(task=task, files=files, tables=tables, truth="made", notes=())
    found = compare(outputs, draws=Draws(resamples=resamples, seed=seed))
    tests = CAPTIONS if task == "caption" else ANSWERS
    return found, judge([find_change(found, test, "made") for test in tests])


def tally(world, *, n=200, first=0):
    """Count verdicts over seeds."""
    return Counter(judge_world(world, first + seed)[1] for seed in range(n))
