"""The logit lens: what each layer's residual stream would say of an object."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.arguments import by_name, check_count
from eah_interp.attribution.asked import reads_log_prob
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, Case, as_case, asks
from eah_interp.attribution.chunks import (
    check_chunks,
    in_chunks,
    join_donors,
    join_parts,
)
from eah_interp.attribution.readouts import MetricName, Readout, Target, TargetValues
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    label_targets,
    list_logits,
    name_targets,
)
from eah_interp.attribution.unembedding import (
    StreamRun,
    Unembedding,
    find_unembedding,
    trace_streams,
)
from eah_interp.errors import NumericalError, SettingsError, show_value
from eah_interp.indices import check_choice, to_ints
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.prompt import find_tokens
from eah_interp.lvlm.spans import ImageSpan
from eah_interp.results import Part
from eah_interp.shown_results import count, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- What every layer says of objects, labelled: the result of `logit_lens`.


@dataclass(frozen=True, eq=False, repr=False)
class LensReading(Part):
    """What one run's residual stream says of each target.

    Where a row has fewer places than another: NaN, and rank -1.

    Attributes:
        logit: The target, as the last layer would have it: a logit, its mean over
            synonyms, or a difference.
        rank: Of the likeliest of the target's tokens among all tokens; 1 is first.
        probability: Of the target's tokens together, in [0, 1]. Of a difference, of
            the first object, as is the rank.
    """

    logit: Float[Tensor, "target point place"]
    rank: Int[Tensor, "target point place"]
    probability: Float[Tensor, "target point place"]


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(ObjectResult):
    """The residual stream by layer, read as if it were the last layer's.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        points: Where in depth: `"embedding"`, which enters the first layer, and `"L0"`
            and so on, what leaves each layer.
        positions: Where in the prompt: the position where the target is read, then
            those that were asked for; -1 where a row has fewer.
        spans: Each row's images, with their patch grids.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run.
        donors: Donor head of each patched layer, by batch item.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    points: tuple[str, ...]
    positions: Int[Tensor, "target place"]
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: LensReading
    patch: Intervention | None
    patched: LensReading | None
    donors: dict[int, Tensor]

    @property
    def values(self) -> TargetValues:
        """The targets themselves: the last layer's reading at the answer."""
        return self.plain.logit[:, -1, 0]

    def frame(self) -> pd.DataFrame:
        """List every reading.

        Returns:
            Columns `object present row position target point layer place read_at logit
            rank probability`, and of a patched run `patched_logit patched_rank
            patched_probability change` (of the logit). `layer` is empty for the
            embedding; `place` is `answer`, `image` or `text`; `read_at` is a position.
        """
        n_targets, n_places = self.positions.shape
        table = pd.MultiIndex.from_product(
            [range(n_targets), range(len(self.points)), range(n_places)],
            names=["target", "depth", "number"],
        ).to_frame(index=False)
        read_at = self.positions[:, None].expand(-1, len(self.points), -1)
        depth, number = table.pop("depth"), table.pop("number")
        table["point"] = [self.points[d] for d in depth]
        table["layer"] = (depth - 1).astype("Int64").mask(depth == 0)
        kinds = [self._list_kinds(target) for target in range(n_targets)]
        cells = zip(table["target"], number, strict=True)
        table["place"] = [kinds[target][place] for target, place in cells]
        table["read_at"] = read_at.flatten().numpy()
        for name in ("logit", "rank", "probability"):
            table[name] = _flat(getattr(self.plain, name))
            if self.patched is not None:
                table[f"patched_{name}"] = _flat(getattr(self.patched, name))
        if self.patched is not None:
            table["change"] = table["patched_logit"] - table["logit"]
        table = label_targets(table, self.targets)
        return table[table["read_at"] >= 0].reset_index(drop=True)

    def _list_kinds(self, target: int) -> list[str]:
        """List what kind of token each place of a target is."""
        spans = self.spans[self.targets[target].row]
        image = {column for span in spans for column in span.columns}
        others = self.positions[target, 1:].tolist()
        return ["answer", *("image" if c in image else "text" for c in others)]

    def _compared(self) -> str:
        return "logit" if self.patched is None else "change"

    def _averaged(self, of: str) -> pd.DataFrame:
        del of
        table = self.frame()
        return table[table["place"] == "answer"]

    def _about(self) -> str:
        n_more = self.positions.shape[1] - 1
        more = f" and up to {count(n_more, 'other token')}" if n_more > 0 else ""
        return (
            f"{name_targets(self.targets)} at the answer{more}, after the embedding "
            f"and {count(len(self.points) - 1, 'layer')}, metric {self.metric}; "
            "likeliest first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        absent = (self.positions < 0)[:, None]
        columns = {
            name: getattr(self.plain, name) for name in ("logit", "rank", "probability")
        }
        if self.patched is not None:
            columns["patched_probability"] = self.patched.probability
        likely = self.plain.probability.masked_fill(absent, torch.nan)

        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            target, point, place = cell
            return label_cell(self.targets, target) | {
                "point": self.points[point],
                "place": self._list_kinds(target)[place],
                "read_at": int(self.positions[target, place]),
            }

        found = list_largest(columns | {"by": likely}, by="by", k=k, label=label)
        return found.drop(columns="by", errors="ignore")

    def top(
        self, k: int = 10, *, by: str = "probability", place: str | None = None
    ) -> pd.DataFrame:
        """List each target's `k` places, over all layers, where it is most readable.

        Args:
            k: How many.
            by: The column that is compared, such as `"patched_probability"`; largest
                first, of ranks the smallest.
            place: `"image"`, `"answer"` or `"text"`; when None the image's, where the
                lens read them, else all.

        Raises:
            SettingsError: If `k` is below 1, there is no such column or place, or the
                lens read none of that kind.
        """
        table = self.frame()
        k = check_count("k", k)
        read = set(table["place"])
        if place is None and "image" in read:
            place = "image"
        if place is not None:
            check_choice("place", place, Place)
            if place not in read:
                msg = (
                    f"this lens read no {place} tokens, only "
                    f"{', '.join(sorted(read))}: "
                    'logit_lens(..., positions="image") reads the image, '
                    "positions=[...] any"
                )
                raise SettingsError(msg)
        numbers = [
            name
            for name in map(str, table.columns)
            if name.endswith(("logit", "rank", "probability"))
        ]
        if not isinstance(by, str) or by not in (
            *numbers,
            *(["change"] if self.patched else []),
        ):
            msg = f"by={show_value(by)} is no column to compare: expected "
            raise SettingsError(msg + ", ".join(numbers))
        there = table if place is None else table[table["place"] == place]
        ordered = there.sort_values(by, ascending=by.endswith("rank"), kind="stable")
        ordered = ordered.sort_values("target", kind="stable")
        return ordered.groupby("target", sort=False).head(k).reset_index(drop=True)

    def curves(self, target: int, *, of: str = "logit") -> dict[str, dict[str, Tensor]]:
        """Sum up one target by depth: at the answer, and over image tokens if read.

        Args:
            target: Which target.
            of: `"logit"` or `"probability"`.

        Returns:
            For each run (`plain`, `patched`) the curves `answer` and, where image
            tokens were read, `image mean` and `image max`, `[point]` each.

        Raises:
            SettingsError: If there is no such target or number.
        """
        if not isinstance(of, str) or of not in ("logit", "probability"):
            msg = f"of must be logit or probability, got {show_value(of)}"
            raise SettingsError(msg)
        check_target(self.targets, target)
        runs = {"plain": self.plain, "patched": self.patched}
        image = torch.tensor([kind == "image" for kind in self._list_kinds(target)])
        curves: dict[str, dict[str, Tensor]] = {}
        for name, reading in runs.items():
            if reading is None:
                continue
            values: Tensor = getattr(reading, of)[target]
            curves[name] = {"answer": values[:, 0]}
            if image.any():
                over = values[:, image]
                curves[name]["image mean"] = over.mean(1)
                curves[name]["image max"] = over.amax(1)
        return curves

    def plot(
        self, target: int = 0, *, of: str = "logit", ax: "Axes | None" = None
    ) -> "Figure":
        """Draw one target by layer: the answer, and what was read of image tokens.

        Args:
            target: Which target.
            of: `"logit"` or `"probability"`.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Returns:
            A matplotlib figure, one column wide: grey plain, blue patched.

        Raises:
            SettingsError: If there is no such target or number.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_curves

        return plot_curves(
            self.curves(target, of=of),
            points=self.points,
            axis=f"{of} of {self.targets[target].label}",
            ax=ax,
        )

    def list_logits(self, *, present: Iterable[str] | None = None) -> pd.DataFrame:
        """List each object's logit at the answer; see `HeadAttribution.list_logits`."""
        runs = {"plain": self.plain, "patched": self.patched}
        logits = {n: run.logit[:, -1, 0] for n, run in runs.items() if run is not None}
        return list_logits(self.targets, logits, present=present)

    def plot_logits(self, *, present: Iterable[str] | None = None) -> "Figure":
        """Draw the objects' logits; see `HeadAttribution.plot_logits`."""
        from eah_interp.viz.heads import plot_logits

        return plot_logits(self.list_logits(present=present), metric=self.metric)


def _flat(values: Tensor) -> Any:
    whole = values.dtype == torch.long
    return (values if whole else values.double()).flatten().numpy()


Place = Literal["answer", "image", "text"]
"""Kinds of tokens: where the target is read, the image's, and all others."""

LOGITS_AT_ONCE = 2**25
"""How many logits are held at a time: 128 MiB of float32."""


@by_name
@asks
def logit_lens(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    positions: Literal["answer", "image"] | Sequence[int] = "answer",
    patch: Intervention | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> LogitLens:
    """Read an object off the residual stream of every layer.

    The stream that enters the first layer and that leaves each layer is put through
    the model's own final norm, unembedding, and whatever it does to logits after that
    (nostalgebraist, "interpreting GPT: the logit lens", 2020; on image tokens: Neo et
    al., "Towards Interpreting Visual Information Processing in Vision-Language
    Models", 2025). After the last layer, at the answer, that is the model's logit:
    checked before anything is returned.

    Early layers are not written to be read by the unembedding: a low rank there does
    not say that the object is not represented.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        positions: Where each target is looked for: `"answer"`, the position where it is
            read; `"image"`, there and at its row's image tokens (hundreds, each with
            logits of the whole vocabulary); or there and at positions of the encoding.
        patch: Settings of a second, patched run: `EAH()`, or any intervention.
        batch_size: Most items in one forward pass; all of them when None. Where it is
            given, items that are asked nothing are not run.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Logit, rank and probability by target, layer and position, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, the metric is not a logit, a target
            reads several positions, or there is no such position.
        ModelError: If norm and unembedding do not make the model's logits of what its
            last layer returns.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> model, image = eah.load(), random_image()
        >>> lens = logit_lens(model, image, objects=["fish"])
        >>> lens.points[:2], tuple(lens.plain.logit.shape)
        (('embedding', 'L0'), (1, 9, 1))
        >>> lens = logit_lens(model, image, objects=["fish"], positions="image")
        >>> tuple(lens.plain.logit.shape)  # the answer, and 100 patches
        (1, 9, 101)
        >>> lens.top(1)["place"].tolist()
        ['image']
    """
    if patch is not None:
        model.check(patch)
    check_chunks(batch_size=batch_size, progress=progress)
    if reads_log_prob(asked):
        msg = (
            "the lens reads one position at a time, and a log-probability of a whole "
            'word several: expected metric="logit", "logit_diff" or "yes_no"; the '
            "result has the probability of the first token"
        )
        raise SettingsError(msg)
    case = as_case(model, images, prompts, **asked)
    _check_positions(case.readout)
    spans = model.spans(case.encoding)
    ids = case.encoding["input_ids"]
    mask = find_tokens(case.encoding.get("attention_mask"), ids)
    places = list_places(case.readout, spans, positions, mask=mask)
    plains, patcheds, donors = [], [], []
    for chunk in in_chunks(case, patch, batch_size=batch_size, progress=progress):
        own = places[chunk.targets]
        plains.append((chunk.targets, _read_run(model, chunk.case, None, own)[0]))
        if patch is not None:
            reading, chosen = _read_run(model, chunk.case, chunk.patch, own)
            patcheds.append((chunk.targets, reading))
            donors.append((chunk.items, chosen))
    return check_finite_result(
        LogitLens(
            model=name_model(model),
            metric=case.readout.metric,
            targets=case.readout.targets,
            points=("embedding", *(f"L{i}" for i in range(model.anatomy.n_layers))),
            positions=places,
            spans=spans,
            plain=join_parts(plains),
            patch=patch,
            patched=join_parts(patcheds) if patcheds else None,
            donors=join_donors(donors, n_items=case.n_items),
        ),
        but=("logit", "probability"),  # `_read_run` checks them where there are places
    )


def list_places(
    readout: Readout,
    spans: Sequence[Sequence[ImageSpan]],
    positions: object,
    *,
    mask: Tensor,
) -> Tensor:
    """List where each target is looked for: its own position, then those asked for.

    Args:
        readout: What is read.
        spans: Each row's images.
        positions: As for `logit_lens`.
        mask: `[row position]`; 0 at padding, which is no place.

    Returns:
        Positions, `[target place]`; -1 where a target's row has fewer.

    Raises:
        SettingsError: If there is no such position.
    """
    asked: tuple[int, ...] = ()
    width = mask.shape[1]
    if not isinstance(positions, str):
        asked = to_ints(positions) or (width,)
    elif positions not in ("answer", "image"):
        asked = (width,)
    beyond = [place for place in asked if not -width <= place < width]
    if beyond or len({place % width for place in asked}) != len(asked):
        msg = (
            'positions must be "answer", "image", or positions of the encoding, each '
            f"once, from 0 to {width - 1} (-1 is the last), got "
            f"{show_value(positions)}"
        )
        raise SettingsError(msg)
    rows = [
        [target.position, *(place % width for place in asked)]
        for target in readout.targets
    ]
    if positions == "image":
        for row, target in zip(rows, readout.targets, strict=True):
            row += [c for span in spans[target.row] for c in span.columns]
    places = torch.full((len(rows), max(map(len, rows))), -1)
    for index, row in enumerate(rows):
        places[index, : len(row)] = torch.tensor(row)
    there = mask.cpu()[readout.target_rows[:, None], places.clamp(min=0)] != 0
    return places.where(there, -1)


def _check_positions(readout: Readout) -> None:
    if not readout.is_linear:
        msg = 'this case reads log-probabilities; pose it with metric="logit"'
        raise SettingsError(msg)
    for index, target in enumerate(readout.targets):
        read = sorted(set(readout.positions[readout.owner == index].tolist()))
        if read != [target.position]:
            msg = (
                f"target {target.label!r} reads positions {read}: expected one "
                "position for each target of a lens"
            )
            raise SettingsError(msg)


def _read_run(
    model: Any, case: Case, patch: Intervention | None, places: Tensor
) -> tuple[LensReading, dict[int, Tensor]]:
    """Run a case, and read every target at its places after every layer."""
    readout = case.readout
    there = places >= 0
    rows = readout.target_rows[:, None].expand_as(places)[there]
    pairs, inverse = torch.unique(
        torch.stack([rows, places[there]], 1), dim=0, return_inverse=True
    )
    where = torch.zeros_like(places)
    where[there] = inverse
    run = trace_streams(model, case, patch, items=pairs[:, 0], positions=pairs[:, 1])
    end = _find_end(model, case, run, where)
    shape = (len(readout.targets), len(run.points), places.shape[1])
    reading = LensReading(
        logit=torch.full(shape, math.nan),
        rank=torch.full(shape, -1),
        probability=torch.full(shape, math.nan),
    )
    for point, stream in enumerate(run.points):
        found = _read_stream(end, stream, readout, rows=pairs[:, 0])
        for name, values in found.items():
            picked = torch.stack([values[t, where[t]] for t in range(shape[0])])
            getattr(reading, name)[:, point][there] = picked[there]
    known = there[:, None].expand(shape)
    if reading.logit[known].isnan().any() or reading.probability[known].isnan().any():
        msg = (
            "the residual stream reads as NaN: expected finite activations; load the "
            "model in another dtype (bfloat16, not float16)"
        )
        raise NumericalError(msg)
    return reading, run.donors


def _find_end(model: Any, case: Case, run: StreamRun, where: Tensor) -> Unembedding:
    """Find the unembedding, checked at the places that the readout reads."""
    last = run.points[-1][where[case.readout.owner, 0].to(run.points[-1].device)]
    return find_unembedding(model, raw=run.raw, final=run.final, last=last)


def _read_stream(
    end: Unembedding, stream: Tensor, readout: Readout, *, rows: Tensor
) -> dict[str, Tensor]:
    """Read every target off one layer's stream, some places at a time.

    Returns:
        Logit, rank and probability, `[target place]` each; only places of a target's
        own row are of use.
    """
    n_targets = len(readout.targets)
    n_places = len(stream)
    found = {
        "logit": torch.zeros(n_targets, n_places),
        "rank": torch.zeros(n_targets, n_places, dtype=torch.long),
        "probability": torch.zeros(n_targets, n_places),
    }
    step = max(1, LOGITS_AT_ONCE // len(end.off))
    for start in range(0, n_places, step):
        part = slice(start, start + step)
        logits = end.read(stream[part])
        total = logits.logsumexp(-1)
        for t, target in enumerate(readout.targets):
            if not (rows[part] == target.row).any():
                continue
            own = readout.owner == t
            weights = readout.weights[own].to(logits.device)
            picked = logits[:, readout.tokens[own].to(logits.device)]
            named = picked[:, weights > 0]
            best = named.amax(-1, keepdim=True)
            found["logit"][t, part] = (picked * weights).sum(-1).cpu()
            ahead = (logits > best).sum(-1, dtype=torch.int32)  # int64 is slower
            found["rank"][t, part] = (1 + ahead).cpu()
            found["probability"][t, part] = (named - total[:, None]).exp().sum(-1).cpu()
    return found
