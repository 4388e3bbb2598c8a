"""Remake the support table: `python docs/support/support_table.py`.

Runs the tests that compare every family with the slow oracle and with TransformerLens,
and writes what passed: `eah_interp/testing/support.json`, which `eah-interp models`
shows, and `docs/models.md`.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from eah_interp.testing import FAMILIES
from eah_interp.testing.support import SUPPORT_FILE

ROOT = Path(__file__).parents[2]
TESTS = ("tests/interventions", "tests/transformer_lens")
CLAIMS = "slow_oracle or donors_and_logits_of_nnsight"

_PAGE = """# Supported models

<!-- Written by docs/support/support_table.py from test results; edit the script, not this. -->

Each family was built as a tiny random model from its real config class, patched by EAH, and compared with an oracle that
replaces attention patterns head by head: the same donors and densities, logits within 1e-4 of their size. "TransformerLens" is
the same comparison between `eah_interp.transformer_lens` on a bridge of the same weights and nnsight. Real checkpoints have not
been run: none can be downloaded where this is built. {versions}.

{supported}

A family that is not listed is examined when it is loaded: its hook points are resolved by what they are, run and checked; a
model they do not fit is refused with the reason. A model that is not in transformers, around a decoder that is:
`tests/interventions/test_own_model.py`.

## Refused

{refused}
"""


def run_tests(report: Path) -> dict[str, dict[str, str]]:
    """Run the tests; return what came of each family under each way of running it."""
    command = [sys.executable, "-m", "pytest", "-q", *TESTS, "-k", CLAIMS]
    subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
    return read_report(report)


def read_report(report: Path) -> dict[str, dict[str, str]]:
    """Read a JUnit report: family, then "eager", "sdpa" or "transformer_lens"."""
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        match = re.search(r"\[(.+?)(?:-(eager|sdpa))?\]$", case.get("name", ""))
        if match is None or match[1] not in FAMILIES:
            continue
        way = match[2] or "transformer_lens"
        failed = any(child.tag in ("failure", "error") for child in case)
        skipped = any(child.tag == "skipped" for child in case)
        result = "fails" if failed else "untested" if skipped else "exact"
        found.setdefault(match[1], {})[way] = result
    return found


def write_page(support: dict[str, Any]) -> str:
    """Write `docs/models.md`."""
    head = ["family", "class in transformers", "inputs in the test", "eager", "SDPA"]
    head += ["TransformerLens", "notes"]
    rows = []
    for name, results in support["families"].items():
        family = FAMILIES[name]
        inputs = "processor" if family.build_processor else "ready-made"
        ways = [results.get(w, "-") for w in ("eager", "sdpa", "transformer_lens")]
        rows.append([f"`{name}`", f"`{family.model}`", inputs, *ways, family.notes])
    refused = [
        [f"`{name}`", f"`{family.model}`", family.refused]
        for name, family in FAMILIES.items()
        if family.refused
    ]
    versions = ", ".join(f"{k} {v}" for k, v in support["versions"].items())
    return _PAGE.format(
        versions=versions,
        supported=_table(head, rows),
        refused=_table(["model", "class", "why"], refused),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run, write, and fail if a supported family failed."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_tests(Path(folder) / "report.xml")
    supported = [name for name, family in FAMILIES.items() if not family.refused]
    libraries = ("torch", "transformers", "nnsight", "transformer-lens")
    support = {
        "versions": {name: metadata.version(name) for name in libraries},
        "families": {name: found.get(name, {}) for name in supported},
    }
    SUPPORT_FILE.write_text(json.dumps(support, indent=1) + "\n")
    (ROOT / "docs" / "models.md").write_text(write_page(support))
    bad = [name for name in supported if "exact" not in found.get(name, {}).values()]
    bad += [name for name, ways in found.items() if "fails" in ways.values()]
    if bad:
        raise SystemExit(
            f"these families failed or were not tested: {sorted(set(bad))}"
        )


if __name__ == "__main__":
    main()
