"""A ledger of published claims: what is claimed, what would refute it, what was found.

Each claim is a file of `eah_interp/claims`, data alone. It is tested on evidence of one
kind at a time: outputs that others released, the embedded toy, or a user's checkpoint.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_kind, check_path
from eah_interp.benchmarks.compare import OutputComparison, compare_outputs
from eah_interp.benchmarks.metrics import COMPARED, MATCHED
from eah_interp.benchmarks.outputs import hash_file
from eah_interp.benchmarks.paired import Draws, check_drawing
from eah_interp.errors import EAHError, InputError, SettingsError, show_value
from eah_interp.indices import check_integer
from eah_interp.interventions.var import find_sink_dims
from eah_interp.results import Part, Result
from eah_interp.studies.claims import (
    Finding,
    Verdict,
    answer_claims,
    judge,
    list_findings,
    list_first,
    plot_findings,
)
from eah_interp.studies.conditions import BASELINE, Condition
from eah_interp.studies.contrasts import contrast_conditions
from eah_interp.studies.found_heads import Files, find_heads, set_aside
from eah_interp.studies.items import MOST_BYTES, Item, open_image, toy_items
from eah_interp.studies.scores import ScoredRows, score_rows
from eah_interp.studies.study import Study, StudyRun
from eah_interp.studies.study_file import make_base, read_condition
from eah_interp.studies.yaml_file import YamlFile, explain
from eah_interp.tables import NOTHING, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["outputs", "toy", "model"]
"""Of what evidence: released outputs, the embedded toy, a user's checkpoint."""

FOLDER = "claims"
"""Where the files lie in the package."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClaimTest(Part):
    """One measurement that bears on a claim.

    Attributes:
        task: Of captions or of yes/no answers.
        metric: Which metric's change.
        expected: The sign that the claim says.
        matched: Whether captions are matched on different objects.
        decides: Whether the verdict goes by it, or it only stands beside.
    """

    task: Literal["caption", "yes_no"]
    metric: str
    expected: Literal["below zero", "above zero"]
    matched: bool = False
    decides: bool = True

    @property
    def name(self) -> str:
        """What it is called in a study."""
        return self.metric + (MATCHED if self.matched else "")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReleasedFile(Part):
    """A file that others released.

    Attributes:
        path: In its repository.
        sha256: Hashes of its bytes: of the file itself first, then of copies that hold
            the same outputs in another form.
    """

    path: str
    sha256: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReleasedOutputs(Part):
    """Outputs with a method, and without it.

    Attributes:
        repository: Where they are.
        commit: At which commit.
        task: Captions or yes/no answers.
        base: Without the method.
        patched: With it.
        questions: The questions of answers; None of captions.
        ground_truth: Which of COCO's two the authors scored captions with, where known.
    """

    repository: str
    commit: str
    task: Literal["caption", "yes_no"]
    base: ReleasedFile
    patched: ReleasedFile
    questions: ReleasedFile | None = None
    ground_truth: str = ""

    @property
    def files(self) -> tuple[ReleasedFile, ...]:
        """All of its files."""
        more = () if self.questions is None else (self.questions,)
        return (self.base, self.patched, *more)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LedgerClaim(Part):
    """A published claim.

    Attributes:
        name: Its file's name.
        title: In a few words.
        paper: Title and year, and of authors, arXiv number, venue and address what a
            source confirms.
        paraphrase: What is claimed, in this ledger's words and not in the paper's.
        compared: What is compared with what.
        refuted_by: What would refute it.
        controls: What a gain has to be shown beside.
        read_in: Where the claim was read, and which parts of it no source confirms.
        tests: What is measured.
        outputs: Released outputs that bear on it.
        conditions: Conditions of a study that do, as a study file writes them.
        unshown: Parts of the claim that no released outputs show: with them it cannot
            be told by outputs, unless what there is refutes it.
        answers: Which of EAH's four claims it is; None for another paper's.
        sinks: Whether a study has to keep sink densities.
    """

    name: str
    title: str
    paper: Mapping[str, Any]
    paraphrase: str
    compared: str
    refuted_by: str
    controls: tuple[str, ...]
    read_in: str = ""
    tests: tuple[ClaimTest, ...] = ()
    outputs: tuple[ReleasedOutputs, ...] = ()
    conditions: tuple[Any, ...] = ()
    unshown: tuple[str, ...] = ()
    answers: int | None = None
    sinks: bool = False

    def _about(self) -> str:
        return f"{self.name}. {self.title} ({_cite(self)})"

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold."""
        return {**dataclasses.asdict(self), "paper": dict(self.paper)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClaimAnswer(Result):
    """What evidence of one kind says of a claim.

    Attributes:
        claim: The claim.
        kind: Of which kind the evidence is.
        evidence: What it is, in words.
        findings: What was measured, and what was not and why.
        notes: What was left out.
    """

    claim: LedgerClaim
    kind: Kind
    evidence: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def _about(self) -> str:
        return f"{self.claim.title}: {self.verdict}, by {self.evidence}"

    def frame(self) -> pd.DataFrame:
        """List what was measured.

        Returns:
            Columns `claim what estimate low high level n expected verdict why`, as of a
            `Claim`, and `decides`, whether the verdict goes by it.
        """
        table = list_findings(self.findings, claim=self.claim.name)
        decides = [one.decides for one in self.findings]
        return table.assign(decides=pd.Series(decides, dtype=bool))

    def _first(self, k: int) -> pd.DataFrame:
        return list_first(self.findings, k)

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw what was measured, with intervals.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            UnsupportedError: If nothing was measured, so that there is nothing to draw.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        return plot_findings(self.findings, f"change, {self.claim.name}", ax=ax)

    @property
    def verdict(self) -> Verdict:
        """Whether the claim holds by this evidence."""
        return judge(self.findings)

    @property
    def table(self) -> Table:
        """What was measured, in words."""
        return Table(
            caption=f"{self.claim.title}: {self.verdict}, by {self.evidence}",
            header=("comparison", "change", "expected", "verdict"),
            rows=tuple(
                (
                    one.what,
                    str(one),
                    one.expected if one.effect else NOTHING,
                    one.verdict if one.decides else f"({one.verdict})",
                )
                for one in self.findings
            ),
            notes="Verdicts in brackets stand beside, and decide nothing.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold."""
        return {
            "claim": self.claim.name,
            "kind": self.kind,
            "evidence": self.evidence,
            "verdict": self.verdict,
            "findings": [
                {
                    "what": one.what,
                    "expected": one.expected,
                    "decides": one.decides,
                    "verdict": one.verdict,
                    "why": one.why,
                    "effect": _write_effect(one),
                }
                for one in self.findings
            ],
            "notes": list(self.notes),
        }


def _write_effect(one: Finding) -> dict[str, Any] | None:
    if one.effect is None:
        return None
    values = dataclasses.asdict(one.effect)
    return {key: None if value != value else value for key, value in values.items()}


# ---- Its files.


@functools.cache
def _make_schema() -> Any:
    base = make_base()
    import pydantic
    from pydantic import Field

    create_model: Any = pydantic.create_model
    task = Literal["caption", "yes_no"]
    sign = Literal["below zero", "above zero"]
    listed = tuple(dict.fromkeys(metric.name for metric in COMPARED))
    names: Any = Literal.__getitem__(listed)
    test = create_model(
        "Test",
        __base__=base,
        task=(task, ...),
        metric=(names, ...),
        expected=(sign, ...),
        matched=(bool, False),
        decides=(bool, True),
    )
    digest = pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")
    from typing import Annotated

    released = create_model(
        "ReleasedFile",
        __base__=base,
        path=(str, ...),
        sha256=(list[Annotated[str, digest]], Field(min_length=1)),
    )
    outputs = create_model(
        "ReleasedOutputs",
        __base__=base,
        repository=(str, ...),
        commit=(str, ...),
        task=(task, ...),
        base=(released, ...),
        patched=(released, ...),
        questions=(released | None, None),
        ground_truth=(Literal["", "nltk", "pattern"], ""),
    )
    paper = create_model(
        "Paper",
        __base__=base,
        title=(str, ...),
        authors=(list[str], []),
        year=(int, ...),
        arxiv=(str, ""),
        where=(str, ""),
        url=(str, ""),
    )
    several: Any = list
    return create_model(
        "Claim",
        __base__=base,
        title=(str, ...),
        paper=(paper, ...),
        paraphrase=(str, ...),
        read_in=(str, ""),
        compared=(str, ...),
        refuted_by=(str, ...),
        controls=(list[str], Field(min_length=1)),
        tests=(several[test], []),
        outputs=(several[outputs], []),
        conditions=(list[Any], []),
        unshown=(list[str], []),
        answers=(Literal[1, 2, 3, 4] | None, None),
        sinks=(bool, False),
    )


def read_claim(path: str | Path) -> LedgerClaim:
    """Read a claim's file.

    Args:
        path: A YAML file; those of the package are examples.

    Raises:
        SettingsError: If a key is unknown or missing or a value impossible; each with
            file, line, key, what was expected and what was there. If answers have no
            questions, or nothing could be measured of it.
        InputError: If it cannot be read.
        ExtraMissingError: If pydantic or PyYAML is not installed.
    """
    path = check_path("path", path)
    schema = _make_schema()
    from pydantic import ValidationError

    file = YamlFile.read(path)
    try:
        checked = schema.model_validate(file.values).model_dump()
    except ValidationError as error:
        raise SettingsError("; ".join(explain(file, error, ()))) from error
    if not checked["tests"] and checked["answers"] is None:
        msg = f"{path}: expected tests, or answers of 1 to 4, got neither"
        raise SettingsError(msg)
    for number, one in enumerate(checked["outputs"]):
        if (one["task"] == "yes_no") != (one["questions"] is not None):
            msg = (
                f"{path}: outputs.{number}: expected questions with yes_no, and none "
                "with caption"
            )
            raise SettingsError(msg)
    paper = {key: value for key, value in checked.pop("paper").items() if value}
    return LedgerClaim(
        name=path.stem,
        paper=paper,
        tests=tuple(ClaimTest(**one) for one in checked.pop("tests")),
        outputs=tuple(_read_outputs(one) for one in checked.pop("outputs")),
        controls=tuple(checked.pop("controls")),
        conditions=tuple(checked.pop("conditions")),
        unshown=tuple(checked.pop("unshown")),
        **{key: _strip(value) for key, value in checked.items()},
    )


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _read_outputs(one: Mapping[str, Any]) -> ReleasedOutputs:
    made = {
        key: None if one[key] is None else _released(one[key])
        for key in ("base", "patched", "questions")
    }
    return ReleasedOutputs(**{**one, **made})


def _released(one: Mapping[str, Any]) -> ReleasedFile:
    return ReleasedFile(path=one["path"], sha256=tuple(one["sha256"]))


@by_name
def list_claims() -> dict[str, LedgerClaim]:
    """Read every claim of the ledger, by name.

    Raises:
        ExtraMissingError: If pydantic or PyYAML is not installed.

    Example:
        >>> "vcd" in list_claims()
        True
    """
    return {name: read_claim(path) for name, path in _list_paths().items()}


def _list_paths() -> dict[str, Path]:
    folder = Path(str(files("eah_interp").joinpath(FOLDER)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@by_name
def find_claim(name: str) -> LedgerClaim:
    """Find a claim of the ledger.

    Args:
        name: Its name, or a claim's file of one's own (it ends in .yaml).

    Raises:
        SettingsError: If there is none of that name; the names are listed.
    """
    if isinstance(name, str) and name.endswith(".yaml"):
        return read_claim(name)
    paths = _list_paths()
    if not isinstance(name, str) or name not in paths:
        msg = f"expected a claim of the ledger ({', '.join(paths)}), got "
        raise SettingsError(f"{msg}{show_value(name)}")
    return read_claim(paths[name])


# ---- Tested on outputs that others released.


def match_files(folder: str | Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Find files by their hash, whatever their names.

    Files of more than 200 MB, which no outputs have, are not looked into.

    Args:
        folder: Where they may lie, at any depth.
        wanted: SHA-256 of each.

    Returns:
        The files that are there, by hash.

    Raises:
        InputError: If there is no such folder.
    """
    place = check_path("folder", folder)
    if not place.is_dir():
        msg = f"expected a folder of released outputs, got {place}; there is none"
        raise InputError(msg)
    found: dict[str, Path] = {}
    for path in sorted(place.rglob("*")):
        if not set(wanted) - set(found):
            break
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            digest = hash_file(path)
            if digest in wanted:
                found.setdefault(digest, path)
    return found


@by_name
def examine_outputs(
    claim: LedgerClaim,
    folder: str | Path,
    *,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    draws: Draws | None = None,
    lemmatize: Any = None,
) -> ClaimAnswer:
    """Test a claim on outputs that others released, and that lie in a folder.

    Args:
        claim: The claim.
        folder: Where the released files are; they are found by their hash.
        annotations: For captions: what is in the images, see `compare_outputs`.
        synonyms: For captions: CHAIR's synonym list.
        draws: Level, samples and seed of the intervals; `Draws()` when None.
        lemmatize: How captions are read; NLTK's when None.

    Returns:
        The answer: what is not in the folder is not measured, and named with where it
        is had.

    Raises:
        InputError: If there is no such folder, or a file in it does not fit.
        SettingsError: If captions are there, and annotations or synonyms are not.
        ExtraMissingError: If NLTK or statsmodels is needed and missing.
    """
    check_kind("claim", claim, LedgerClaim, expected="a claim of the ledger")
    wanted = [h for one in claim.outputs for f in one.files for h in f.sha256]
    there = match_files(folder, wanted)
    findings: list[Finding] = []
    notes: list[str] = []
    for one in claim.outputs:
        paths = [_find(file, there) for file in one.files]
        missing = [f for f, p in zip(one.files, paths, strict=True) if p is None]
        label = f"{Path(one.patched.path).stem} against {Path(one.base.path).stem}"
        tests = [test for test in claim.tests if test.task == one.task]
        if missing:
            why = (
                f"no file here has the SHA-256 {missing[0].sha256[0][:12]}... of "
                f"{missing[0].path} in {one.repository} at {one.commit}"
            )
            findings += [_lack(test, label, why) for test in tests]
            continue
        if one.task == "caption" and (annotations is None or synonyms is None):
            given = {"annotations": annotations, "synonyms": synonyms}
            lacking = [name for name, value in given.items() if value is None]
            msg = (
                "released captions are scored with files of yours: expected "
                f"annotations and synonyms, got no {' and no '.join(lacking)}"
            )
            raise SettingsError(msg)
        own: dict[str, Any] = (
            {"questions": paths[2]}
            if one.task == "yes_no"
            else {
                "annotations": annotations,
                "synonyms": synonyms,
                "lemmatize": lemmatize,
            }
        )
        compared = compare_outputs(
            str(paths[0]), str(paths[1]), draws=draws, common=False, **own
        )
        findings += [find_change(compared, test, label) for test in tests]
        notes += [f"{label}: {note}" for note in compared.outputs.notes]
        notes.append(f"{label}: {compared.describe()}")
        if one.ground_truth:
            notes.append(f"{label}: its authors used {one.ground_truth!r}.")
    findings += [
        Finding(what=part, why="undefined: no released outputs show it")
        for part in claim.unshown
    ]
    if not claim.outputs:
        findings.append(Finding(what="released outputs", why="none are known"))
    return ClaimAnswer(
        claim=claim,
        kind="outputs",
        evidence="released outputs",
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _find(file: ReleasedFile, there: Mapping[str, Path]) -> Path | None:
    return next((there[digest] for digest in file.sha256 if digest in there), None)


def _lack(test: ClaimTest, label: str, why: str) -> Finding:
    return Finding(
        what=f"{test.name}: {label}",
        expected=test.expected,
        why=why,
        decides=test.decides,
    )


def find_change(compared: OutputComparison, test: ClaimTest, label: str) -> Finding:
    """Take what a test of a claim is about from a comparison of two files.

    Args:
        compared: The comparison.
        test: The test.
        label: What is compared with what.
    """
    change = compared.find(test.metric)
    effect = change.matched if test.matched else change.effect
    undefined = change.matched_undefined if test.matched else change.undefined
    return Finding(
        what=f"{test.name}: {label}",
        effect=effect,
        digits=1 if change.percent else 2,
        expected=test.expected,
        why=f"undefined: {undefined}" if effect is None else "",
        decides=test.decides,
    )


# ---- Tested on a model: the toy, or a user's checkpoint.


@by_name
def examine_model(
    claim: LedgerClaim,
    model: Any,
    items: Sequence[Item],
    folder: str | Path,
    *,
    kind: Kind = "model",
    name: str = "",
    decoding: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    draws: Draws | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ClaimAnswer:
    """Test a claim on a model, with a study of its conditions.

    Heads that a method has to find in the model first (`heads: {found: prompt}`) are
    found on the first quarter of the images, and the claim is tested on the others.
    Where a condition has `controls`, the method is compared with random heads too.

    Args:
        claim: The claim.
        model: An LVLM.
        items: What is asked.
        folder: Of the study; it goes on where it stopped.
        kind: Which kind of evidence it is.
        name: What the model is called in the answer; its class when empty.
        decoding: As for `Study`.
        batch_size: As for `Study`.
        annotations: As for `score_rows`.
        synonyms: As for `score_rows`.
        draws: Level, samples and seed of the intervals; `Draws()` when None.
        seed: As for `Study`.
        progress: Whether to show a bar.

    Returns:
        The answer; a method that this package does not have is not measured.

    Raises:
        SettingsError: If a condition does not fit the model.
        InputError: If the items do not fit.
        ExtraMissingError: If pyarrow is not installed.
    """
    draws = check_drawing(draws)
    evidence = name or ("the toy" if kind == "toy" else type(model._module).__name__)
    files: Files = {"annotations": annotations, "synonyms": synonyms}
    aside, tested = set_aside(items) if _finds_heads(claim) else ((), tuple(items))
    conditions, why = _read_conditions(
        claim, seed=seed, model=model, items=aside or tested, files=files
    )
    if why:
        tests = claim.tests or (
            ClaimTest(task="caption", metric="CHAIR_S", expected="below zero"),
        )
        return ClaimAnswer(
            claim=claim,
            kind=kind,
            evidence=evidence,
            findings=tuple(
                _lack(test, "the method against none", why) for test in tests
            ),
        )
    study = Study(
        model,
        tested,
        conditions,
        decoding=decoding or {},
        batch_size=batch_size,
        sinks=claim.sinks,
        seed=seed,
    )
    run = study.run(folder, progress=progress)
    rows = score_rows(run, annotations=annotations, synonyms=synonyms)
    return ClaimAnswer(
        claim=claim,
        kind=kind,
        evidence=f"{evidence}, {len(tested)} items",
        findings=tuple(_measure(claim, run, rows, draws, conditions)),
        notes=(*rows.notes, *_tell_found(conditions, aside)),
    )


def _finds_heads(claim: LedgerClaim) -> bool:
    return any(_wants_heads(entry) for entry in claim.conditions)


def _wants_heads(entry: object) -> bool:
    heads = entry.get("heads") if isinstance(entry, Mapping) else None
    return isinstance(heads, Mapping) and set(heads) == {"found"}


def _tell_found(conditions: Sequence[Condition], aside: Sequence[Item]) -> list[str]:
    """Tell which heads were found, and on what, where any were."""
    images = len({item.image for item in aside})
    return [
        f"Heads of {one.name!r}: "
        f"{', '.join(f'L{layer}H{head}' for layer, head in one.patch.pairs)}, found on "  # type: ignore[union-attr]
        f"{images} images on which nothing was tested."
        for one in conditions
        if aside and hasattr(one.patch, "pairs") and one.random is None
    ]


def _read_conditions(
    claim: LedgerClaim,
    *,
    seed: int,
    model: Any = None,
    items: Sequence[Item] = (),
    files: Files | None = None,
) -> tuple[tuple[Condition, ...], str]:
    """Read a claim's conditions, or say why they cannot be run.

    Sink dimensions and heads belong to a model: `sink_dims: found` and `heads:
    {found: prompt}` are filled in with its own.
    """
    if not claim.conditions:
        return (), "the claim has no conditions of a study: no method to run"
    found: list[Condition] = []
    for entry in claim.conditions:
        own = dict(entry) if isinstance(entry, Mapping) else entry
        try:
            if isinstance(own, dict):
                _fill_in(own, model, items, files or {})
        except (InputError, SettingsError) as error:
            return (), f"what the method needs is not found: {error}"
        try:
            several = read_condition(own, seed=seed)
        except (ValueError, EAHError) as error:
            said = str(error).partition(" For further")[0]
            return (), f"not a method of this version: {' '.join(said.split()):.120}"
        if len(several) > 1:  # of controls those that take the method's own place
            several = tuple(c for c in several if c.patch is not None)
        found += several
    for condition in found:
        if condition.patch is not None and not condition.patch.fits_itself:
            try:
                condition.patch.check_fitted()
            except SettingsError as error:
                return (), f"what the method needs is not found yet: {error}"
    return tuple(found), ""


def _fill_in(
    entry: dict[str, Any], model: Any, items: Sequence[Item], files: Files
) -> None:
    """Fill in what is to be found in the model; of no model, what could stand there.

    Raises:
        InputError: If it is not found.
    """
    if entry.get("sink_dims") == "found":
        entry["sink_dims"] = [0] if model is None else _find_dims(model, items)
    if _wants_heads(entry):
        pairs = [(0, 0)]
        if model is not None:
            pairs = list(find_heads(entry["heads"]["found"], model, items, files))
        entry["heads"] = [list(pair) for pair in pairs]


def _find_dims(model: Any, items: Sequence[Item]) -> list[int]:
    """Find the dimensions that are massive in most layers, on the first image.

    Raises:
        InputError: If there are none.
    """
    table = find_sink_dims(model, open_image(items[0].image))
    found = [int(dim) for dim in table.dim[table.layers >= 0.5]]
    if not found:
        msg = (
            "the model has no massive activations, so that it has no sinks in the "
            "sense of the method (find_sink_dims)"
        )
        raise InputError(msg)
    return found


def _measure(
    claim: LedgerClaim,
    run: StudyRun,
    rows: ScoredRows,
    draws: Draws,
    conditions: Sequence[Condition],
) -> Iterator[Finding]:
    if claim.answers is not None:
        answered = answer_claims(run, rows, draws=draws)[claim.answers - 1]
        yield from answered.findings
    for one in conditions if claim.tests else ():
        if one.name == BASELINE.name:
            continue
        pair = (one.null_of, one.name) if one.null_of else (one.name, BASELINE.name)
        # Beside a null stands nothing: only what decides is compared with it.
        tests = [test for test in claim.tests if test.decides or not one.null_of]
        yield from _contrast(rows, pair, tests, draws)


def _contrast(
    rows: ScoredRows, pair: tuple[str, str], tests: Sequence[ClaimTest], draws: Draws
) -> Iterator[Finding]:
    """Compare one condition with another in all tests."""
    name, reference = pair
    found = {
        (c.metric.task, c.metric.name): c
        for c in contrast_conditions(rows, name, reference=reference, draws=draws)
        if c.kind == "all"
    }
    label = f"{name!r} against {reference!r}"
    for test in tests:
        one = found.get((test.task, test.name))
        if one is None:
            what = "captions" if test.task == "caption" else "yes/no answers"
            yield _lack(test, label, f"the study has no {what} with this metric")
            continue
        yield Finding(
            what=f"{test.name}: {label}",
            effect=one.effect,
            digits=1 if one.metric.percent else 2,
            expected=test.expected,
            why=f"undefined: {one.undefined}" if one.effect is None else "",
            decides=test.decides,
        )


@by_name
def examine_toy(
    claim: LedgerClaim,
    folder: str | Path,
    *,
    n_scenes: int = 100,
    draws: Draws | None = None,
    progress: bool = True,
) -> ClaimAnswer:
    """Test a claim on the embedded toy, whose ground truth is exact.

    The toy has a world of its own: what holds on it need not hold elsewhere.

    Args:
        claim: The claim.
        folder: Of the study; it goes on where it stopped.
        n_scenes: Scenes of its test split.
        draws: Level, samples and seed of the intervals; `Draws()` when None.
        progress: Whether to show a bar.

    Returns:
        The answer.

    Raises:
        SettingsError: If there is no number of scenes, or the folder holds another
            study.
    """
    from eah_interp.lvlm import load

    items = toy_items(check_integer("n_scenes", n_scenes, least=1))
    return examine_model(
        claim, load(), items, folder, kind="toy", draws=draws, progress=progress
    )


# ---- In words.


def tabulate_claims(claims: Mapping[str, LedgerClaim]) -> Table:
    """Lay out the ledger: a claim a row, with what it can be tested on."""
    return Table(
        caption="The ledger of claims",
        header=("name", "claim", "paper", "tested on"),
        rows=tuple(
            (name, one.title, _cite(one), ", ".join(_list_kinds(one)) or "nothing yet")
            for name, one in claims.items()
        ),
        prose=True,
    )


def _list_kinds(claim: LedgerClaim) -> Iterator[str]:
    if claim.outputs:
        yield "released outputs"
    conditions, why = _read_conditions(claim, seed=0)
    if conditions and not why:
        yield "the toy"
        yield "a checkpoint"


def _cite(claim: LedgerClaim) -> str:
    """Name authors, or the first of many, year, and where a paper is to be found."""
    paper = claim.paper
    authors = paper.get("authors", ())
    families = [name.split()[-1] for name in authors]
    who = f"{families[0]} et al." if len(families) > 2 else " and ".join(families)
    number = paper.get("arxiv")
    where = f"arXiv:{number}" if number else paper.get("where")
    return ", ".join(part for part in (who, str(paper["year"]), where) if part)


def _cite_in_full(claim: LedgerClaim) -> str:
    paper = claim.paper
    number, year, where = paper.get("arxiv"), str(paper["year"]), paper.get("where", "")
    parts = (
        paper["title"].rstrip("."),
        ", ".join(paper.get("authors", ())),
        where if year in where else ", ".join(part for part in (where, year) if part),
        number and f"arXiv:{number}",
        paper.get("url"),
    )
    return ". ".join(part for part in parts if part).replace("?.", "?")


def write_claim(claim: LedgerClaim) -> str:
    """Write a claim out, with where its released outputs are."""
    lines = [
        claim.title,
        f"Paper: {_cite_in_full(claim)}",
        f"Claimed, in our words: {claim.paraphrase}",
        *([f"Read in: {claim.read_in}"] if claim.read_in else ()),
        f"Compared: {claim.compared}",
        f"Refuted by: {claim.refuted_by}",
        "Controls: " + "; ".join(claim.controls),
    ]
    for test in claim.tests:
        beside = "" if test.decides else " (beside, decides nothing)"
        lines.append(f"Measured: {test.name}, expected {test.expected}{beside}")
    for one in claim.outputs:
        lines.append(f"Released: {one.repository} at {one.commit}")
        lines += [f"  {file.path}\n  SHA-256 {file.sha256[0]}" for file in one.files]
    kinds = list(_list_kinds(claim))
    lines.append("Tested on: " + (", ".join(kinds) or "nothing yet"))
    return "\n".join(lines)
