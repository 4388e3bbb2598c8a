"""How much of a study is there, and what failed."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eah_interp.studies.study import StudyRun


@dataclass(frozen=True)
class StudyProgress:
    """How much of a study is there.

    Attributes:
        folder: The study's.
        n_items: Items of the study.
        by_condition: Rows that are there, by condition.
        n_failed: Rows with an error in place of an answer.
        errors: Each different error with its count and the first row that has it,
            the most frequent first.
    """

    folder: Path
    n_items: int
    by_condition: dict[str, int]
    n_failed: int
    errors: tuple[tuple[str, int, str], ...]

    @property
    def n_rows(self) -> int:
        """Rows that are there."""
        return sum(self.by_condition.values())

    @property
    def n_wanted(self) -> int:
        """Rows of the whole study."""
        return self.n_items * len(self.by_condition)

    def to_dict(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        values = dataclasses.asdict(self) | {"folder": str(self.folder)}
        return values | {"n_rows": self.n_rows, "n_wanted": self.n_wanted}


def measure_progress(folder: str | Path) -> StudyProgress:
    """Count what is there of a study.

    Raises:
        InputError: If the folder holds no study, or a file cannot be read.
    """
    run = StudyRun.load(folder)
    rows = run.rows()
    failed = rows[rows["error"].notna()]
    errors = []
    for error, group in failed.groupby("error", sort=False):
        first = group.iloc[0]
        example = f"{first['item']} under {first['condition']}"
        errors.append((str(error), len(group), example))
    counts = rows["condition"].value_counts()
    return StudyProgress(
        folder=run.folder,
        n_items=run.manifest.n_items,
        by_condition={name: int(counts.get(name, 0)) for name in run.conditions},
        n_failed=len(failed),
        errors=tuple(sorted(errors, key=lambda one: -one[1])),
    )
