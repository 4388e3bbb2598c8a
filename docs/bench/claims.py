"""Make docs/claims.md: the ledger, what evidence says of it, and its calibration.

    python docs/bench/claims.py --outputs DIR [--annotations FILE --synonyms FILE]
    python docs/bench/claims.py --words
    python docs/bench/claims.py --toy spin vhr

DIR holds released outputs, found by their hash (`eah-interp claims show NAME` says
which); without it their column says that they were not measured. Calibration is of 200
simulated pairs of outputs in each of eight worlds; `tests/claims` runs the same. With
`--words` nothing is measured: what the claims' files say is written anew, and what was
measured stays. With `--toy` these claims are put to the toy anew, and the rest stays.
"""

import argparse
import tempfile
from pathlib import Path

from eah_interp.studies import examine_outputs, examine_toy, list_claims
from eah_interp.studies.ledger import ClaimAnswer, LedgerClaim, write_claim
from tests.claims.simulated import LIMITS, WORLDS, tally

PAGE = Path(__file__).parents[1] / "claims.md"

HEAD = """# A ledger of published claims

Made by `python docs/bench/claims.py`; not edited by hand. One file of
`eah_interp/claims` a claim: what is claimed, what is compared, what it has to be
shown beside, and what would refute it. Claims are in our words, not in their papers';
with each stands where it was read. Evidence is of three kinds that are never mixed:
outputs that others released (you have the files, they are found by their SHA-256), the
embedded toy, and your checkpoint.

```console
$ eah-interp claims list
$ eah-interp claims show vcd
$ eah-interp claims test vcd --outputs DIR --annotations objects.json \\
    --synonyms synonyms.txt
$ eah-interp claims test eah-3 --toy
$ eah-interp claims test pai --model CHECKPOINT --study study.yaml
```

A verdict goes by the intervals: a claim **holds** where everything measured that
decides says so, **does not hold** where one interval lies on the other side, **cannot
be told** otherwise, and was **not measured** where there is no evidence, with the
reason. No interval is adjusted for how many there are. What stands beside (raw
changes, recall, loops) decides nothing: shorter captions hallucinate less, so
captions are matched on different objects ([how](how-to/compare.md)). Heads that a
method has to find in the model first (`heads: {found: prompt}`, `{found:
hallucination}`) are found on the first quarter of the images, at most 40, and tested on
the others, against random heads of the same layers too. Claims of your own:
`eah-interp claims test mine.yaml ...`.

```python
from eah_interp.studies import find_claim, list_claims

claims = list_claims()
assert find_claim("vcd").refuted_by == claims["vcd"].refuted_by
```

## Verdicts
"""


def slug(title: str) -> str:
    """Write the anchor of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def write_effects(answer: ClaimAnswer) -> list[str]:
    """List what decided, with intervals."""
    lines = [f"{one.what}: {one} ({one.verdict})" for one in answer.findings]
    return [f"- {line}" for line in lines]


def write_words(name: str, claim: LedgerClaim) -> list[str]:
    """List what a claim's file says; hashes are said by the command."""
    said = [line for line in write_claim(claim).splitlines()[1:] if line[0] != " "]
    listed = [f"- {line}" for line in dict.fromkeys(said)]
    return [f"`eah-interp claims show {name}`\n", *listed]


def write_answer(answer: ClaimAnswer) -> list[str]:
    """Write what evidence of one kind says."""
    measured = [one for one in answer.findings if one.effect or one.decides]
    if any(one.effect for one in measured):
        told = f"\nBy {answer.evidence}: **{answer.verdict}**\n"
        return [told, *write_effects(answer)]
    why = measured[0].why if measured else "nothing to measure"
    return [f"\nBy {answer.evidence}: **not measured** ({why})."]


def rewrite_toy(names: list[str], *, n_scenes: int) -> None:
    """Put some claims to the toy, and write what it says in the place of before."""
    claims = list_claims()
    for name in names:
        claim = claims[name]
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            toy = examine_toy(
                claim, Path(folder) / "toy", n_scenes=n_scenes, progress=False
            )
        page = PAGE.read_text()
        start = page.index(f"\n## {claim.title}\n")
        end = page.find("\n## ", start + 1)
        end = len(page) if end < 0 else end
        before = page.index("\nBy the toy", start, end)
        page = page[:before] + "\n".join(write_answer(toy)) + "\n" + page[end:]
        link = f"| [{claim.title}](#{slug(claim.title)}) |"
        lines = page.split("\n")
        row = next(i for i, line in enumerate(lines) if line.startswith(link))
        released = lines[row].split(" | ")[1]
        lines[row] = f"{link} {released} | {toy.verdict} |"
        PAGE.write_text("\n".join(lines))
    rewrite_words()


def rewrite_words() -> None:
    """Write what the files say into the page that there is."""
    sections = PAGE.read_text().split("\n## ")[1:]
    first = HEAD.rpartition("\n## ")[0]
    found = {section.split("\n", 1)[0]: section for section in sections}
    for name, claim in list_claims().items():
        measured = found[claim.title].partition("\nBy ")[2]
        words = "\n".join([claim.title, "", *write_words(name, claim)])
        found[claim.title] = f"{words}\n\nBy {measured}"
    PAGE.write_text("\n## ".join([first, *found.values()]))


def write_page(options: argparse.Namespace) -> None:
    """Write the whole page."""
    claims = list_claims()
    rows = ["| claim | released outputs | the toy |", "| --- | --- | --- |"]
    details = []
    for name, claim in claims.items():
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            released = examine_outputs(
                claim,
                options.outputs or folder,
                annotations=options.annotations,
                synonyms=options.synonyms,
            )
            toy = examine_toy(
                claim, Path(folder) / "toy", n_scenes=options.scenes, progress=False
            )
        link = f"[{claim.title}](#{slug(claim.title)})"
        rows.append(f"| {link} | {released.verdict} | {toy.verdict} |")
        details += [f"\n## {claim.title}\n", *write_words(name, claim)]
        for answer in (released, toy):
            details += write_answer(answer)
    table = calibrate(options.simulations)
    PAGE.write_text("\n".join([HEAD, *rows, *table, *details]) + "\n")


def calibrate(n: int) -> list[str]:
    """Tabulate verdicts on simulated outputs."""
    names = ("holds", "does not hold", "cannot be told")
    lines = [
        "\n## Calibration\n",
        f"Verdicts on {n} simulated pairs of outputs in each world, in percent. Where "
        "nothing but length, repetition or saying No differs, at most one in twenty "
        "intervals should lie on one side. Captions are 200, answers 1,200.\n",
        f"| what the method does | right verdict | {' | '.join(names)} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, world in {**WORLDS, **LIMITS}.items():
        found = tally(world, n=n)
        shares = " | ".join(f"{100 * found[key] / n:.1f}" for key in names)
        lines.append(f"| {name} | {world.right} | {shares} |")
    lines.append(
        "\nThe last two rows are worlds that matching is not made for. In the first a "
        "caption may end because nothing true is left to name. In the second an "
        "object is riskier the later it is named by words, not by objects: captions "
        "that repeat themselves name their k-th object later, and are judged the "
        "worse for it."
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--synonyms", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--toy", nargs="+", metavar="NAME")
    given = parser.parse_args()
    if given.words:
        rewrite_words()
    elif given.toy:
        rewrite_toy(given.toy, n_scenes=given.scenes)
    else:
        write_page(given)
