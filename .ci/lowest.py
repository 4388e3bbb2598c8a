"""Print the lowest versions that pyproject.toml admits, as pip's constraints.

`python .ci/lowest.py dev,viz` prints `name==bound` for each of the dependencies and of
the extras named. `make lowest` installs those and runs the tests on them.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

# What cannot be installed at its bound here, with the reason.
EXEMPT = {
    "torch": "PyPI's wheels for Linux bring CUDA, several GB; of CPU builds only "
    "2.13.0 is at hand. docs/nnsight.md says what was run on the bound itself",
}


def list_lowest(extras: list[str]) -> list[str]:
    """List `name==bound` for every dependency, and for those of the extras."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    bounds: dict[str, set[str]] = {}
    for requirement in map(Requirement, wanted):
        lowest = [s.version for s in requirement.specifier if s.operator == ">="]
        if len(lowest) != 1:
            msg = f"expected one lower bound (name>=version), got {requirement}"
            raise SystemExit(msg)
        if requirement.name not in EXEMPT:
            bounds.setdefault(requirement.name, set()).add(lowest[0])
    double = sorted(name for name, versions in bounds.items() if len(versions) > 1)
    if double:
        msg = f"{', '.join(double)}: two different bounds; write the same in both lists"
        raise SystemExit(msg)
    return [f"{name}=={versions.pop()}" for name, versions in sorted(bounds.items())]


if __name__ == "__main__":
    print("\n".join(list_lowest(sys.argv[1].split(","))))
