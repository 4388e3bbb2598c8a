"""Results of every kind, made of random tensors: of any size, and without a model."""

import dataclasses
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

import eah_interp as eah
from eah_interp.attribution import (
    BroadcastScores,
    Circuits,
    HeadApproximation,
    HeadAttribution,
    HeadPatching,
    HeadPatterns,
    LogitLens,
    Mediation,
    NodePatching,
    PathApproximation,
    PathPatching,
    PictureAttribution,
    RecipientAttribution,
)
from eah_interp.attribution.broadcast_scores import ScoreRun
from eah_interp.attribution.direct import Change, DirectEffects
from eah_interp.attribution.lens import LensReading
from eah_interp.attribution.patches import PictureEffects
from eah_interp.attribution.patterns import PatternRun
from eah_interp.attribution.readouts import Target
from eah_interp.benchmarks.amber import AmberCaptions, AmberRates, AmberScore
from eah_interp.benchmarks.chair import ChairScore
from eah_interp.benchmarks.compare import Adjusted, OutputChange, OutputComparison
from eah_interp.benchmarks.hallusionbench import HallusionRates, HallusionScore
from eah_interp.benchmarks.lengths import CAPPED, CapChange
from eah_interp.benchmarks.metrics import METRICS
from eah_interp.benchmarks.mme import MmeScore, MmeTask
from eah_interp.benchmarks.mmvp import MmvpScore
from eah_interp.benchmarks.outputs import OutputFile, Outputs
from eah_interp.benchmarks.pope import PopeScore
from eah_interp.benchmarks.readouts import (
    NextTokens,
    ReadoutAudit,
    ReadoutScore,
    YesNoToken,
)
from eah_interp.benchmarks.toy import ToyBenchmark
from eah_interp.finders import DimScores, HeadScores
from eah_interp.interventions import (
    Directions,
    EAHPatch,
    FoundSinks,
    LayerPatch,
    Patch,
    SinkMap,
    SinkRule,
    TowerMap,
)
from eah_interp.kernels import ColumnScores
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.report.inspection import Asked, Caption, Inspection, ObjectLogit
from eah_interp.report.reading import Reading
from eah_interp.report.subjects import Question, Subject
from eah_interp.statistics import Effect
from eah_interp.studies import StudyRun
from eah_interp.studies.claims import Claim, Finding
from eah_interp.studies.contrasts import Contrast, Draws, Score
from eah_interp.studies.ledger import (
    ClaimAnswer,
    ClaimTest,
    LedgerClaim,
    ReleasedFile,
    ReleasedOutputs,
)
from eah_interp.studies.summary import StudySummary
from eah_interp.viz import GroupedPatterns

MODEL = "LlavaForConditionalGeneration (llava-1.5-7b-hf)"
SAVED_STUDY = Path(__file__).parent / "saved/study"
ODD = "<script>alert('a')</script> $x_1$ & \n\t\x00\N{SNOWMAN}"
"""A name that HTML, mathematics and a terminal would each take for something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much a result holds."""

    items: int = 2
    layers: int = 3
    heads: int = 4
    side: int = 3
    targets: int = 2
    images: bool = True
    fill: float | None = None
    label: str = "boat"

    @property
    def patches(self):
        return self.side**2 if self.images else 0

    @property
    def keys(self):
        return 4 + self.patches


SIZES = {
    "two items": Size(),
    "one item, one layer": Size(items=1, layers=1, targets=1),
    "without images": Size(images=False),
    "nothing": Size(items=0, targets=0),
    "NaN": Size(fill=float("nan")),
    "zeros": Size(fill=0.0),
    "odd names": Size(label=ODD),
    "many targets": Size(targets=300, items=1),
}
LARGE = Size(items=20, layers=32, heads=32, side=24, targets=20)
"""Twenty images to a model of seven billion weights."""


def make(kind, size):
    """Make a result of a class."""
    return MAKERS[kind](size)


def random(size, *shape):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return numbers if size.fill is None else torch.full(shape, size.fill)


def shares(size, *shape):
    return random(size, *shape).sigmoid() if size.fill is None else random(size, *shape)


def targets_of(size):
    rows = max(size.items, 1)
    return tuple(
        Target(f"{size.label} {n}" if n else size.label, n % rows, 7, size.label)
        for n in range(size.targets)
    )


def spans_of(size):
    if not size.images:
        return ((),) * size.items
    columns = tuple(range(2, 2 + size.patches))
    grid = tuple(
        columns[at : at + size.side] for at in range(0, size.patches, size.side)
    )
    part = ImagePart("image", grid, (0.0, 0.0, 1.0, 1.0))
    return tuple(
        (ImageSpan(row, 0, 2, 2 + size.patches, columns, (part,)),)
        for row in range(size.items)
    )


def columns_of(size):
    mask = torch.zeros(size.items, size.keys, dtype=torch.bool)
    mask[:, 2 : 2 + size.patches] = True
    return mask


def layers_of(size):
    return tuple(range(size.layers))


def donors_of(size):
    return {0: torch.zeros(size.items, dtype=torch.long)}


def nodes_of(size):
    heads = [f"L{n}H{h}" for n in range(size.layers) for h in range(size.heads)]
    return (*heads, "L0.mlp")


def head_scores(size):
    items = torch.arange(size.items).repeat_interleave(2)
    wide = (len(items), size.layers, size.heads)
    return HeadScores(
        model=MODEL,
        finder="hallucination",
        measure="fall of absent minus present objects",
        scores=random(dataclasses.replace(size, fill=finite(size)), *wide),
        layers=layers_of(size),
        items=items,
        labels="groups",
        group=torch.arange(len(items)) % 2 == 0,
        weights="0123456789abcdef",
    )


def dim_scores(size):
    numbers = random(dataclasses.replace(size, fill=finite(size)), size.items, 8).abs()
    return DimScores(
        model=MODEL,
        activation=numbers,
        massive=(numbers > 1).float(),
        weights="0123456789abcdef",
    )


def directions(size):
    wide = (size.items, size.layers, 8)
    return Directions(
        model=MODEL,
        values=random(dataclasses.replace(size, fill=finite(size)), *wide),
        layers=layers_of(size),
        per_item=True,
        weights="0123456789abcdef",
    )


def finite(size):
    """Take zeros for NaN, where that is refused."""
    return 0.0 if size.fill != size.fill else size.fill


def sink_map(size):
    wide = (size.items, size.layers, size.heads)
    return SinkMap(
        model=MODEL,
        layers=layers_of(size),
        density=shares(size, *wide),
        sinks=random(size, *wide, size.keys) > 0,
        columns=columns_of(size),
        donors=torch.zeros(wide[:2], dtype=torch.long),
        spans=spans_of(size),
        definition="visible",
        beta=1.0,
    )


def found_sinks(size):
    columns = columns_of(size)
    wide = (size.items, size.layers, size.keys)
    nothing = float("nan")
    hidden = ~columns
    tower = 2 * shares(size, size.items, size.keys).masked_fill(hidden, nothing)
    return FoundSinks(
        model=MODEL,
        columns=columns,
        spans=spans_of(size),
        tower_norms=random(size, *wide).abs(),
        norm_thresholds=torch.ones(size.items),
        norms=random(size, size.items, size.layers + 1, size.keys).abs(),
        tower_scores=tower,
        language_scores=torch.zeros(wide),
        massive=torch.zeros(0, 4, dtype=torch.long),
        massive_values=torch.zeros(0),
        layers=layers_of(size),
        attention=shares(size, size.items, size.layers, 2, size.keys),
        shares=shares(size, size.items, size.keys),
        learned=shares(size, size.items, size.layers, size.heads),
        rule=SinkRule(),
        beta=1.0,
    )


def tower_map(size):
    place = columns_of(size).nonzero()
    links = torch.cat([torch.arange(len(place))[:, None], place], 1)
    return TowerMap(
        model=MODEL,
        shape=(size.items, size.patches),
        links=links,
        columns=columns_of(size),
        spans=spans_of(size),
    )


def layer_patch(size, layer=0):
    scores = ColumnScores(
        random(size, size.items, size.heads, size.keys).abs(),
        torch.ones(size.items, 1, size.keys),
        columns_of(size),
        torch.float16,
    )
    donors = torch.arange(size.items) % size.heads
    density = shares(size, size.items, size.heads)
    return LayerPatch(layer, donors, donors >= 0, density, scores)


def eah_patch(size):
    layers = tuple(layer_patch(size, layer) for layer in range(size.layers))
    return EAHPatch(eah.EAH(layers=layers_of(size)), layers, model=MODEL)


def learned_patch(size):
    settings = eah.VAR(sink_dims=(1, 2), layers=layers_of(size))
    learned = {layer: random(size, size.items, size.keys) > 1 for layer in (0,)}
    return Patch(settings, layers_of(size), learned, model=MODEL)


def effects(size):
    n, wide = size.targets, (size.targets, size.layers, size.heads)
    return DirectEffects(
        values=random(size, n),
        heads=random(size, *wide),
        blocks=random(size, n, 2),
        embedding=random(size, n),
        between=random(size, n),
        bias=random(size, n),
        sources=random(size, *wide, 5) if n < 50 else None,
    )


def head_attribution(size):
    heads = random(size, size.targets, size.layers, size.heads)
    return HeadAttribution(
        metric="logit",
        targets=targets_of(size),
        layers=layers_of(size),
        blocks=("L0.mlp", "L1.mlp"),
        spans=spans_of(size),
        plain=effects(size),
        patch=eah.EAH(donor="random", steps="all"),
        patched=effects(size),
        donors=donors_of(size),
        change=Change(heads, heads + 1, heads - 1),
        model=MODEL,
    )


def head_approximation(size):
    wide = (size.targets, size.layers, size.heads)
    exact = torch.full(wide, torch.nan)
    exact[..., 0] = 1.0
    return HeadApproximation(
        metric="logit",
        targets=targets_of(size),
        layers=layers_of(size),
        method="attribution_patching",
        what="output",
        source="EAH",
        target="plain",
        source_patch=eah.EAH(),
        target_patch=None,
        n_steps=None,
        values=random(size, size.targets),
        source_values=random(size, size.targets),
        approximate=random(size, *wide),
        exact=exact,
        whole_layers=None,
        model=MODEL,
    )


def lens(size):
    wide = (size.targets, size.layers + 1, 1 + size.patches)
    positions = torch.arange(wide[-1]).expand(size.targets, -1).clone()
    if wide[-1] > 1:
        positions[:, -1] = -1
    reading = LensReading(
        random(size, *wide), torch.ones(wide, dtype=torch.long), shares(size, *wide)
    )
    return LogitLens(
        metric="logit",
        targets=targets_of(size),
        points=("embedding", *(f"L{n}" for n in range(size.layers))),
        positions=positions,
        spans=spans_of(size),
        plain=reading,
        patch=None,
        patched=None,
        donors={},
        model=MODEL,
    )


def mediation(size):
    return Mediation(
        metric="yes_no",
        targets=targets_of(size),
        eah=eah.EAH(),
        nodes=nodes_of(size),
        plain=random(size, size.targets),
        patched=random(size, size.targets) + 1,
        restored=random(size, size.targets, len(nodes_of(size))),
        unmediated=random(size, size.targets),
        model=MODEL,
    )


def head_patching(size):
    return HeadPatching(
        metric="logit",
        targets=targets_of(size),
        what="output",
        source="zero",
        target="EAH",
        source_patch=None,
        target_patch=eah.EAH(),
        patches=nodes_of(size),
        values=random(size, size.targets),
        source_values=None,
        effects=random(size, size.targets, len(nodes_of(size))),
        model=MODEL,
    )


def node_patching(size):
    return NodePatching(
        metric="logit",
        targets=targets_of(size),
        source="EAH",
        source_patch=eah.EAH(),
        nodes=nodes_of(size),
        places=("object", "last"),
        values=random(size, size.targets),
        source_values=None,
        effects=random(size, size.targets, len(nodes_of(size)), 2),
        model=MODEL,
    )


def path_approximation(size):
    senders = nodes_of(size)
    exact = torch.full((size.targets, len(senders)), torch.nan)
    exact[:, :1] = 1.0
    return PathApproximation(
        metric="logit",
        targets=targets_of(size),
        method="eap",
        source="EAH",
        source_patch=eah.EAH(),
        n_steps=None,
        senders=senders,
        receivers=("logit",) * len(senders),
        values=random(size, size.targets),
        source_values=None,
        approximate=random(size, size.targets, len(senders)),
        exact=exact,
        remainder=None,
        model=MODEL,
    )


def circuits(size):
    senders = nodes_of(size)
    return Circuits(
        metric="logit",
        targets=targets_of(size),
        source="plain, another image",
        senders=senders,
        receivers=("logit",) * len(senders),
        scores=random(size, len(senders)),
        shares=(0.1, 1.0),
        sizes=(1, len(senders)),
        chosen=0,
        values=random(size, size.targets),
        source_values=random(size, size.targets) - 1,
        kept=random(size, size.targets, 2),
        left=random(size, size.targets, 2),
        random=random(size, 3, size.targets, 2),
        without=random(size, size.targets, 1),
        stability=random(size, 2),
        model=MODEL,
    )


def path_patching(size):
    senders = nodes_of(size)
    return PathPatching(
        metric="logit",
        targets=targets_of(size),
        source="EAH",
        source_patch=eah.EAH(),
        final_norm="recomputed",
        senders=senders,
        receivers=("L9H0.q", *("logit",) * (len(senders) - 1)),
        values=random(size, size.targets),
        source_values=random(size, size.targets),
        effects=random(size, size.targets, len(senders)),
        model=MODEL,
    )


def recipients(size):
    names = tuple(f"L0H{head}" for head in range(size.heads))
    return RecipientAttribution(
        metric="logit",
        targets=targets_of(size),
        eah=eah.EAH(layers=(0,)),
        method="alone",
        recipients=names,
        donors=donors_of(size),
        plain=random(size, size.targets),
        patched=random(size, size.targets) + 1,
        effects=random(size, size.targets, size.heads),
        errors=random(size, size.targets, size.heads) * 0,
        model=MODEL,
    )


def pictures(size):
    wide = (size.targets, size.layers, size.heads)
    taken = PictureEffects(
        random(size, size.targets),
        random(size, *wide, size.patches),
        random(size, *wide),
    )
    columns = torch.arange(2, 2 + size.patches).expand(size.targets, -1)
    return PictureAttribution(
        metric="logit",
        method="contribution",
        targets=targets_of(size),
        layers=layers_of(size),
        columns=columns.clone(),
        spans=spans_of(size),
        plain=taken,
        patch=None,
        patched=None,
        donors={},
        model=MODEL,
    )


def patterns(size):
    heads = tuple((0, head) for head in range(size.heads))
    run = PatternRun(
        shares(size, size.items, size.heads, 2, size.keys),
        random(size, size.items, size.heads, size.keys) > 0,
    )
    return HeadPatterns(
        heads=heads,
        positions=torch.tensor([1, size.keys - 1]),
        tokens=((size.label,) * size.keys,) * size.items,
        spans=spans_of(size),
        images=columns_of(size),
        padding=torch.zeros(size.items, size.keys, dtype=torch.bool),
        plain=run,
        patch=eah.EAH(),
        patched=run,
        donors=donors_of(size),
        sinks_by=eah.EAH(),
        model=MODEL,
    )


def broadcast_scores(size):
    wide = (size.items, 2, size.heads, size.keys)
    run = ScoreRun(random(size, *wide).abs(), torch.ones(wide))
    return BroadcastScores(
        eah=eah.EAH(layers=(0,)),
        layers=(0, 1),
        columns=columns_of(size),
        spans=spans_of(size),
        plain=run,
        patched=dataclasses.replace(run, scores=run.scores * 2),
        donors=donors_of(size),
        model=MODEL,
    )


def grouped(size):
    labels = tuple(f"{size.label} {n}" for n in range(size.keys))
    return GroupedPatterns(
        names=tuple(f"L0H{head}" for head in range(size.heads)),
        labels=labels,
        groups=tuple((n,) for n in range(size.keys)),
        queries=tuple(range(size.keys)),
        weights=shares(size, size.heads, size.keys, size.keys),
    )


def rate(size):
    return 50.0 if size.fill is None else size.fill


def pope(size):
    value = rate(size)
    return PopeScore(
        n=4, accuracy=value, precision=value, recall=value, f1=value,
        false_positives=value, yes_ratio=value, n_neither=0, tp=1, fp=1, tn=1, fn=1,
    )  # fmt: skip


def chair(size):
    value = rate(size)
    return ChairScore(
        n=4, chair_s=value, chair_i=value, recall=value, mentions=value, objects=value,
        words=value, distinct_4grams=value, n_hallucinating=1, n_absent=1,
        n_mentions=2, n_objects=2, n_found=1, n_truth=2, n_4grams=3,
        n_distinct_4grams=3,
    )  # fmt: skip


def toy_benchmark(size):
    n = max(size.items, 1)
    questions = pd.DataFrame(
        {
            "scene": range(n),
            "kind": "random",
            "object": size.label,
            "present": [number % 2 == 0 for number in range(n)],
            "margin": 0.5 if size.fill is None else size.fill,
            "says_yes": True,
        }
    )
    captions = pd.DataFrame(
        {
            "scene": range(n),
            "caption": size.label,
            "mentions": [[size.label]] * n,
            "truth": [["boat", "cup"]] * n,
        }
    )
    return ToyBenchmark(questions, captions, model=MODEL)


def effect(size):
    value = rate(size)
    return Effect(estimate=value, low=value - 1, high=value + 1, level=0.95, n=9)


def claim(size):
    told = Finding(what=size.label, effect=effect(size), why="undefined")
    lacking = Finding(what="another", why="the study lacks it: run it with sinks=True")
    return Claim(number=1, statement="Sinks are dense.", findings=(told, lacking))


def labels_of(size):
    return [f"{size.label} {number}" for number in range(size.items)]


def amber(size):
    value = rate(size)
    of_kind = AmberRates(
        n=4, n_neither=1, accuracy=value, precision=value, recall=value, f1=value
    )
    told = AmberCaptions(n=2, chair=value, cover=value, hal=value, cog=value)
    kinds = dict.fromkeys(labels_of(size), of_kind)
    return AmberScore(
        official=kinds,
        corrected=dict(kinds),
        captions=told if size.images else None,
        captions_corrected=told if size.images else None,
        score=value if size.images else None,
        n_missing=1,
    )


def mme(size):
    value = rate(size)
    task = MmeTask(
        n=4, n_images=2, n_other=0, accuracy=value, accuracy_plus=value, score=2 * value
    )
    tasks = dict.fromkeys(labels_of(size), task)
    return MmeScore(
        official=tasks,
        corrected=dict(tasks),
        perception=value,
        cognition=value,
        perception_corrected=value,
        cognition_corrected=value,
        missing=(size.label,),
    )


def hallusion(size):
    value = rate(size)
    rates = HallusionRates(
        n=4,
        a_acc=value,
        f_acc=value,
        q_acc=value,
        n_figures=2,
        n_pairs=2,
        n_uncertain=0,
    )
    groups = dict.fromkeys(labels_of(size), rates)
    return HallusionScore(official=groups, corrected=dict(groups), n_missing=0)


def mmvp(size):
    value = rate(size)
    return MmvpScore(n_pairs=2, n=4, n_unread=1, accuracy=value, pairs=value)


def yes_no_tokens(size):
    return (
        YesNoToken(id=3, token=size.label, word="Yes", spaced=True),
        YesNoToken(id=4, token="No", word="No", spaced=False),
    )


def next_tokens(size):
    return NextTokens(
        yes_no_tokens(size),
        shares(size, size.items, 2),
        torch.full((size.items,), 3),
        patch=eah.EAH(),
        model=MODEL,
    )


def audit(size):
    value = rate(size)
    return ReadoutAudit(
        readouts=tuple(
            ReadoutScore(name=name, source="logits", score=pope(size), mass=value / 100)
            for name in labels_of(size)
        ),
        tokens=yes_no_tokens(size),
    )


def comparison(size):
    files = tuple(
        OutputFile(name=name, path=f"runs/{name}", sha256="0" * 64, n=size.items)
        for name in ("base", size.label)
    )
    table = pd.DataFrame(
        {
            "image_id": range(size.items),
            "caption": labels_of(size),
            "item": labels_of(size),
            "cluster": labels_of(size),
            "mentions": [["cup", "boat"]] * size.items,
            "starts": [[0, 4]] * size.items,
            "truth": [["cup"]] * size.items,
        }
    )
    value = rate(size)
    changes = tuple(
        OutputChange(
            file=size.label,
            metric=metric,
            base=value,
            value=None if metric == "recall" else value,
            effect=None if metric == "recall" else effect(size),
            undefined="no image has an object" if metric == "recall" else "",
            matched=effect(size),
            gained=1,
            lost=2,
            p=1.0,
        )
        for metric in ("CHAIR_S", "recall")
    )
    one = effect(size)
    return OutputComparison(
        outputs=Outputs(
            task="caption",
            files=files,
            tables=(table, table.copy()),
            truth=f"the objects by image that {size.label} lists",
            notes=(size.label,),
        ),
        draws=Draws(),
        changes=changes,
        adjusted=(Adjusted(file=size.label, raw=one, slope=None, effect=one),),
    )


def claim_answer(size):
    file = ReleasedFile(path="captions.jsonl", sha256=("0" * 64,))
    return ClaimAnswer(
        claim=LedgerClaim(
            name="vcd",
            title=size.label,
            paper={"title": size.label, "authors": ["A. B"], "year": 2023},
            paraphrase="Contrasting lowers hallucination.",
            compared="with and without",
            refuted_by="a change above zero",
            controls=("length",),
            tests=(ClaimTest(task="caption", metric="recall", expected="above zero"),),
            outputs=(
                ReleasedOutputs(
                    repository="github.com/a/b",
                    commit="0" * 40,
                    task="caption",
                    base=file,
                    patched=file,
                ),
            ),
            conditions=({"kind": "vcd", "alphas": [1.0, 0.5], "sink_dims": None},),
        ),
        kind="outputs",
        evidence="released outputs",
        findings=claim(size).findings,
        notes=(size.label,),
    )


def summary(size):
    metric = METRICS[0]
    names = [f"{size.label} {number}" for number in range(max(size.items, 1))]
    return StudySummary(
        name=size.label,
        manifest=StudyRun.load(SAVED_STUDY).manifest,
        reference="baseline",
        draws=Draws(),
        rule="pope",
        scores=tuple(
            Score(condition=name, metric=metric, kind="all", n=4, effect=effect(size))
            for name in names
        ),
        contrasts=tuple(contrast(size, name) for name in names),
        failures=({"condition": "baseline", "answered": 4, "failed": 0, "missing": 0},),
        notes=(size.label,),
        caps=tuple(
            CapChange(
                condition=name,
                metric=metric,
                by="objects",
                length=2.5,
                full=3.0,
                effect=effect(size),
            )
            for name in names
            for metric in CAPPED
        ),
    )


def contrast(size, name=""):
    return Contrast(
        condition=name or size.label,
        reference="baseline",
        metric=METRICS[0],
        kind="all",
        n=4,
        n_dropped=0,
        effect=effect(size),
        p=0.5,
        p_holm=1.0,
    )


def inspection(size):
    one = dataclasses.replace(size, items=1)
    logits = {"plain": random(size, 50), "EAH": random(size, 50)}
    asked = Asked(
        question=Question(size.label, "boat", present=True),
        reading=Reading(size.label, 7, logits, {"EAH": eah_patch(one)}),
        answers={"plain": size.label, "EAH": "No."},
        yes={name: float(values[0]) for name, values in logits.items()},
        no={name: float(values[1]) for name, values in logits.items()},
        next_tokens={"plain": [{"token": size.label, "logit": 1.0}], "EAH": []},
    )
    told = ObjectLogit("cup", "cup", 5, False, True, {"plain": 1.0, "EAH": 2.0})
    return Inspection(
        model={"name": MODEL, "n_layers": size.layers},
        versions={"torch": "2"},
        made_at="2026-11-29 06:00 UTC",
        command="",
        eah=eah.EAH(),
        subject=Subject(
            image=Image.new("RGB", (8, 8), "red"),
            title=size.label,
            present=("boat",),
            absent=("cup",),
            companions=(),
            questions=(asked.question,),
        ),
        asked=(asked,),
        caption=Caption("Describe.", "There is a", 5, {"plain": "a"}, (told,)),
        sink_map=sink_map(one),
        span=ImageSpan(0, 0, 2, 3, (2,), ()),
        broadcast=None,
        explained=(),
        verdict=("It helped.",),
        remarks=(),
    )


MAKERS = {
    SinkMap: sink_map,
    FoundSinks: found_sinks,
    TowerMap: tower_map,
    EAHPatch: eah_patch,
    LayerPatch: layer_patch,
    Patch: learned_patch,
    HeadAttribution: head_attribution,
    HeadApproximation: head_approximation,
    LogitLens: lens,
    Mediation: mediation,
    HeadPatching: head_patching,
    PathPatching: path_patching,
    PathApproximation: path_approximation,
    NodePatching: node_patching,
    Circuits: circuits,
    RecipientAttribution: recipients,
    PictureAttribution: pictures,
    HeadPatterns: patterns,
    BroadcastScores: broadcast_scores,
    Directions: directions,
    HeadScores: head_scores,
    DimScores: dim_scores,
    GroupedPatterns: grouped,
    PopeScore: pope,
    ChairScore: chair,
    ToyBenchmark: toy_benchmark,
    Contrast: contrast,
    AmberScore: amber,
    MmeScore: mme,
    HallusionScore: hallusion,
    MmvpScore: mmvp,
    NextTokens: next_tokens,
    ReadoutAudit: audit,
    OutputComparison: comparison,
    Claim: claim,
    ClaimAnswer: claim_answer,
    StudyRun: lambda _: StudyRun.load(SAVED_STUDY),
    StudySummary: summary,
    Inspection: inspection,
}
"""What makes a result of each class, of a size."""
