"""Effects of image tokens, on the image: the result of `attribute_patches`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.arguments import by_name
from eah_interp.attribution.asked import reads_log_prob
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, Case, as_case, asks
from eah_interp.attribution.chunks import (
    check_chunks,
    in_chunks,
    join_donors,
    join_parts,
)
from eah_interp.attribution.direct_path import run_direct
from eah_interp.attribution.gradient_runs import (
    SourceRun,
    check_gradients,
    run_attention_gradient,
)
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    largest,
    list_heads,
    name_head,
    name_targets,
)
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, to_int, to_ints, to_list
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.spans import ImageSpan, lay_out
from eah_interp.results import Part
from eah_interp.shown_results import count, count_heads, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.lvlm.images import ImageLike

# ---- What one run's heads took from each image token.


@dataclass(frozen=True, eq=False, repr=False)
class PictureEffects(Part):
    """What one run's heads took from each image token to each target.

    `patches.sum(-1) + text` is the sum over everything that a head read.

    Attributes:
        values: The targets.
        patches: By image token; 0 where a row has fewer than another.
        text: What was taken from all other tokens.
    """

    values: TargetValues
    patches: Float[Tensor, "target layer head patch"]
    text: Float[Tensor, "target layer head"]

    @property
    def heads(self) -> Float[Tensor, "target layer head"]:
        """What each head took from everything that it read."""
        return self.patches.sum(-1) + self.text

    def flat(self) -> Any:
        """Write all numbers in a line, float64: image tokens, then text, by head."""
        both = torch.cat([self.patches, self.text[..., None]], -1)
        return both.double().flatten().numpy()


Sign = Literal["both", "positive", "negative"]
"""Which effects are summed over heads: all, or those of one sign alone."""

RunOrChange = Literal["plain", "patched", "change"]
"""Which run, or patched minus plain."""

Heads = Sequence[tuple[int, int]] | None
"""Layers and heads, such as `[(3, 7)]`; None for all."""


@dataclass(frozen=True, eq=False, repr=False)
class PictureAttribution(ObjectResult):
    """Effects on objects' logits by the image token that heads read.

    Attributes:
        metric: What was read.
        method: How image tokens were credited.
        targets: What each number is about.
        layers: Decoder index of each entry of the layer axis.
        columns: Position of each image token; -1 where a target's row has fewer.
        spans: Each row's images, with their patch grids.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run.
        donors: Donor head of each patched layer, by batch item.
    """

    metric: MetricName
    method: str
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    columns: Int[Tensor, "target patch"]
    spans: tuple[tuple[ImageSpan, ...], ...]
    plain: PictureEffects
    patch: Intervention | None
    patched: PictureEffects | None
    donors: dict[int, Tensor]

    def frame(self) -> pd.DataFrame:
        """List what every head took from every image token.

        Returns:
            Columns `object present row position target layer head name read_at plain`,
            and of a patched run `patched change`; `read_at` is an image token's
            position, and empty for all other tokens together.
        """
        n_targets, n_layers, n_heads, n_patches = self.plain.patches.shape
        heads = list_heads(self.targets, self.layers, n_heads)
        table = heads.loc[heads.index.repeat(n_patches + 1)].reset_index(drop=True)
        text = torch.full((n_targets, 1), -2)
        read_at = torch.cat([self.columns, text], 1)[:, None, None]
        read_at = read_at.expand(-1, n_layers, n_heads, -1).flatten()
        table["read_at"] = pd.array(read_at.numpy(), dtype="Int64")
        table["plain"] = self.plain.flat()
        if self.patched is not None:
            table["patched"] = self.patched.flat()
            table["change"] = table["patched"] - table["plain"]
        table = table[table["read_at"] != -1].reset_index(drop=True)
        table["read_at"] = table["read_at"].mask(table["read_at"] == -2)
        return table

    def _compared(self) -> str:
        return "plain" if self.patched is None else "change"

    def _averaged(self, of: str) -> pd.DataFrame:
        del of
        runs = {"plain": self.plain, "patched": self.patched}
        table = list_heads(self.targets, self.layers, self.plain.text.shape[-1])
        for name, run in runs.items():
            if run is not None:
                table[name] = run.patches.double().sum(-1).flatten().numpy()
        if self.patched is not None:
            table["change"] = table["patched"] - table["plain"]
        return table

    def _about(self) -> str:
        _, n_layers, n_heads, n_patches = self.plain.patches.shape
        first = "plain effect" if self.patched is None else "change"
        return (
            f"{name_targets(self.targets)}, {count_heads(n_layers, n_heads)} x "
            f"{count(n_patches, 'image token')} by {self.method}, metric "
            f"{self.metric}; largest {first} first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        columns = {"plain": self.plain.patches}
        if self.patched is not None:
            columns["patched"] = self.patched.patches
            columns["change"] = self.patched.patches - self.plain.patches

        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            target, layer, head, patch = cell
            return label_cell(self.targets, target) | {
                "name": name_head(self.layers[layer], head),
                "read_at": int(self.columns[target, patch]),
            }

        return list_largest(columns, by=list(columns)[-1], k=k, label=label)

    def top(self, k: int = 10, *, by: str | None = None) -> pd.DataFrame:
        """List each target's `k` image tokens and heads with the largest effects.

        Args:
            k: How many.
            by: The column that is compared: `"plain"`, or by default `"change"` where
                there is a patched run.

        Raises:
            SettingsError: If `k` is below 1, or there is no such column.
        """
        table = self.frame()
        image = table[table["read_at"].notna()].reset_index(drop=True)
        return largest(image, k, by=by or ("plain" if self.patch is None else "change"))

    def summed(
        self,
        target: int,
        *,
        heads: Heads = None,
        run: RunOrChange = "plain",
        sign: Sign = "both",
    ) -> Float[Tensor, " patch"]:
        """Sum one target's effects over heads, for each image token.

        Args:
            target: Which target.
            heads: Layers and heads; all when None.
            run: Plain, patched, or the change of the sum.
            sign: Sum all effects, or only the positive or the negative ones, which
                would cancel each other.

        Raises:
            SettingsError: If a target, head or run does not exist.
        """
        check_target(self.targets, target)
        check_choice("sign", sign, Sign)
        if isinstance(run, str) and run == "change":
            old, new = (
                self.summed(target, heads=heads, run=which, sign=sign)
                for which in ("plain", "patched")
            )
            return new - old
        effects = self._run(run).patches[target]
        effects = effects.flatten(0, 1) if heads is None else self._pick(effects, heads)
        if sign == "positive":
            effects = effects.clamp(min=0)
        elif sign == "negative":
            effects = effects.clamp(max=0)
        return effects.sum(0)

    def _run(self, run: str) -> PictureEffects:
        runs = {"plain": self.plain, "patched": self.patched}
        found = runs.get(run) if isinstance(run, str) else None
        if found is None:
            known = [name for name, effects in runs.items() if effects is not None]
            msg = (
                f"run={show_value(run)} is not there: expected {' or '.join(known)}; "
                "a patched run is made by attribute_patches(..., patch=)"
            )
            raise SettingsError(msg)
        return found

    def _pick(self, effects: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
        n_heads = effects.shape[1]
        pairs = [to_ints(pair) or () for pair in to_list(heads) or ()]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            msg = (
                "heads must be layers and heads, as in [(3, 7)], at least one, or left "
                f"out, got {show_value(heads)}"
            )
            raise SettingsError(msg)
        for layer, head in pairs:
            if layer not in self.layers or not 0 <= head < n_heads:
                last = f"layers to {self.layers[-1]}, heads to {n_heads - 1}"
                msg = f"there is no head L{layer}H{head}: expected {last}"
                raise SettingsError(msg)
        return torch.stack([effects[self.layers.index(la), h] for la, h in pairs])

    def picture(
        self,
        target: int,
        *,
        heads: Heads = None,
        run: RunOrChange = "plain",
        sign: Sign = "both",
        image: int = 0,
    ) -> tuple[Float[Tensor, "row column"], ...]:
        """Lay one target's effects out as the patches lie in the image.

        Args:
            target: Which target.
            heads: Layers and heads; all when None.
            run: Plain, patched, or the change.
            sign: As for `summed`.
            image: Which image of the target's row.

        Returns:
            A grid for each part of the image (`spans[row][image].parts`: the whole,
            crops, tiles); NaN where a patch shows padding only.

        Raises:
            UnsupportedError: If image tokens have no place in the image.
            SettingsError: If a target, head, run or image does not exist.
        """
        values = self.summed(target, heads=heads, run=run, sign=sign)
        columns = self.columns[target].tolist()
        by_column = dict(zip(columns, values.tolist(), strict=True))
        return lay_out(self.span(target, image=image), by_column)

    def span(self, target: int, *, image: int = 0) -> ImageSpan:
        """Return where an image of a target's row is.

        Raises:
            SettingsError: If the row has no such image.
        """
        check_target(self.targets, target)
        spans, number = self.spans[self.targets[target].row], to_int(image)
        if number is None or not 0 <= number < len(spans):
            got = show_value(image)
            msg = f"image {got} does not exist: expected 0 to {len(spans) - 1}"
            raise SettingsError(msg)
        return spans[number]

    def plot(
        self,
        image: "ImageLike | None" = None,
        *,
        target: int = 0,
        heads: Heads = None,
        sign: Sign = "both",
        number: int = 0,
        outlined: Sequence[int] = (),
        ax: "Axes | None" = None,
    ) -> "Figure":
        """Draw one target's effects on the image, plain, patched and the change.

        Colour is opaque at the largest effect and clear at zero, on one scale for all
        panels. Where a model looks at an image several times (an overview and crops),
        each way has a row of panels.

        Args:
            image: The original image; a white one when None.
            target: Which target.
            heads: Layers and heads; all when None.
            sign: As for `summed`.
            number: Which image of the target's row it is.
            outlined: Positions of image tokens to outline, such as vision sinks.
            ax: Not taken: there is a panel for each run and each of the image's grids.

        Returns:
            A matplotlib figure.

        Raises:
            UnsupportedError: If image tokens have no known place in the image.
            SettingsError: If a target, head or image does not exist, or axes are given.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.figures import refuse_axes
        from eah_interp.viz.overlays import blank_image, plot_effects

        refuse_axes(ax, panels="a panel for each run")
        check_target(self.targets, target)
        if image is None:
            image = blank_image(self.span(target, image=number).parts)
        runs = get_args(RunOrChange) if self.patched is not None else ("plain",)
        what = "effect on"
        if self.method == "attention_gradient":
            what = "attention x gradient of"
        return plot_effects(
            image,
            self.span(target, image=number).parts,
            grids={
                run: self.picture(target, heads=heads, run=run, sign=sign, image=number)
                for run in runs
            },
            label=f"{what} {self.targets[target].label} (logit)",
            outlined=outlined,
        )


# ---- Which patches of the image move an object's logit, through which heads.


Method = Literal["contribution", "attention_gradient"]
"""How an image token is credited; see `attribute_patches`."""


@by_name
@asks
def attribute_patches(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    patch: Intervention | None = None,
    method: Method = "contribution",
    batch_size: int | None = None,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> PictureAttribution:
    """Credit every image token with what each head takes from it to an object's logit.

    With `y` an image token, `A` the head's pattern and `x` the position that is read:

    - `"contribution"`: the head's direct effect, split over what it reads,
      `A[x, y] * v[y] W_O s`, with `s` the frozen slope of the logit. Exact: image and
      text tokens together give the head's direct effect (`attribute_heads`), and not
      what it does through later components.
    - `"attention_gradient"`: `A[x, y] * dm/dA[x, y]`, the gradient through all later
      layers (Chefer et al., "Generic Attention-model Explainability", 2021, with both
      signs kept). A first-order estimate: its sums are no effects of anything.

    Image tokens carry what the vision tower and earlier layers moved into them, so this
    says from which *position* a head read, not which pixels mattered.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        patch: Settings of a second, patched run: `EAH()`, or any intervention.
        method: How image tokens are credited.
        batch_size: Most items in one forward pass; all of them when None. Where it is
            given, items that are asked nothing are not run.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Effects by target, layer, head and image token, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            there is no image token.
        SettingsError: If a word cannot be spelled, or the method is unknown or does not
            fit the metric.
        ModelError: If heads do not write into the residual stream, under
            `"contribution"`.
        UnsupportedError: If the model has no gradients, under `"attention_gradient"`.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = attribute_patches(eah.load(), random_image(), objects=["fish"])
        >>> found.plain.patches.shape, found.picture(0)[0].shape
        (torch.Size([1, 8, 8, 100]), torch.Size([10, 10]))
    """
    check_choice("method", method, Method)
    if patch is not None:
        model.check(patch)
    check_chunks(batch_size=batch_size, progress=progress)
    _check_linear(method, linear=not reads_log_prob(asked))
    case = as_case(model, images, prompts, **asked)
    _check_linear(method, linear=case.readout.is_linear)
    if method == "attention_gradient":
        check_gradients(model)
    spans = model.spans(case.encoding)
    columns = _list_columns(case, spans)
    plains, patcheds, donors = [], [], []
    for chunk in in_chunks(case, patch, batch_size=batch_size, progress=progress):
        own = columns[chunk.targets]
        plain = _split(model, chunk.case, None, method)
        plains.append((chunk.targets, _gather(plain, own)))
        if patch is not None:
            patched = _split(model, chunk.case, chunk.patch, method)
            patcheds.append((chunk.targets, _gather(patched, own)))
            donors.append((chunk.items, patched.donors))
    return check_finite_result(
        PictureAttribution(
            model=name_model(model),
            metric=case.readout.metric,
            method=method,
            targets=case.readout.targets,
            layers=tuple(model.anatomy.sites),
            columns=columns,
            spans=spans,
            plain=join_parts(plains),
            patch=patch,
            patched=join_parts(patcheds) if patcheds else None,
            donors=join_donors(donors, n_items=case.n_items),
        )
    )


def _check_linear(method: Method, *, linear: bool) -> None:
    if method == "contribution" and not linear:
        msg = (
            "a log-probability is not a sum of direct effects: expected metric="
            '"logit", "logit_diff" or "yes_no", or method="attention_gradient"'
        )
        raise SettingsError(msg)


def _list_columns(case: Case, spans: Sequence[Sequence[Any]]) -> Tensor:
    """List the image tokens of each target's row, -1 where it has fewer."""
    rows = [
        [column for span in spans[target.row] for column in span.columns]
        for target in case.readout.targets
    ]
    for target, row in zip(case.readout.targets, rows, strict=True):
        if not row:
            msg = (
                f"row {target.row} has no image tokens: expected at least 1 for "
                f"{target.label!r}; pass an image with each prompt"
            )
            raise InputError(msg)
    columns = torch.full((len(rows), max(map(len, rows))), -1)
    for index, row in enumerate(rows):
        columns[index, : len(row)] = torch.tensor(row)
    return columns


def _split(
    model: Any, case: Case, patch: Intervention | None, method: Method
) -> SourceRun:
    if method == "attention_gradient":
        return run_attention_gradient(model, case, patch)
    run = run_direct(model, case, patch)
    return SourceRun(
        values=run.values.cpu(),
        sources=[run.sources(layer).cpu() for layer in run.heads],
        donors=run.donors,
    )


def _gather(run: SourceRun, columns: Tensor) -> PictureEffects:
    """Keep what image tokens were credited with; text tokens in one sum."""
    there = columns >= 0
    patches, text = [], []
    for source in run.sources:  # target head key
        index = columns.clamp(min=0)
        picked = source.gather(-1, index[:, None].expand(-1, source.shape[1], -1))
        patches.append(picked * there[:, None])
        image = torch.zeros(len(source), source.shape[-1], dtype=torch.bool)
        for row, (own, real) in enumerate(zip(columns, there, strict=True)):
            image[row, own[real]] = True
        text.append(source.masked_fill(image[:, None], 0).sum(-1))
    return PictureEffects(run.values, torch.stack(patches, 1), torch.stack(text, 1))
