"""Rows of heads' attention patterns, labelled: the result of `read_patterns`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask, Definition
from eah_interp.arguments import check_count
from eah_interp.attribution.nodes import NodeName, find_nodes
from eah_interp.attribution.results import Result, name_head, register
from eah_interp.attribution.runs import (
    check_unedited,
    open_question,
    read_rows,
    score_run,
    visit_layers,
)
from eah_interp.errors import SettingsError, UnsupportedError, show_value
from eah_interp.indices import to_int, to_ints, to_list
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.intervention import Intervention
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.prompt import Prompt
from eah_interp.lvlm.spans import ImageSpan, lay_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eah_interp.lvlm.images import ImageLike
    from eah_interp.viz.circuits import By, GroupedPatterns, Tokens
    from eah_interp.viz.widgets import Widget

# ---- What some heads attend to in one run.


RunName = Literal["plain", "patched"]
"""Which run."""


@register
@dataclass(frozen=True)
class PatternRun:
    """What some heads attend to in one run.

    Attributes:
        rows: Their patterns in some query rows. A row sums to one, or to less where a
            learned sink takes a share.
        sinks: Which image columns are their vision sinks.
    """

    rows: Float[Tensor, "batch head row key"]
    sinks: Bool[Tensor, "batch head key"]


@dataclass(frozen=True)
class HeadPatterns(Result):
    """Some query rows of some heads' attention patterns, plain and patched.

    Attributes:
        heads: Layer and head of each entry of the head axis.
        positions: Prompt position of each entry of the row axis.
        tokens: What stands at each position, by batch item.
        spans: Each item's images, with their patch grids.
        images: True at image tokens.
        padding: True at padding.
        plain: The run as it is.
        patch: The settings of the patched run; None where none was asked for.
        patched: The patched run: the patterns that heads attend with in it.
        donors: Donor head of each patched layer, by batch item.
        sinks_by: The settings whose definition and threshold say what a sink is.
    """

    heads: tuple[tuple[int, int], ...]
    positions: Int[Tensor, " row"]
    tokens: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[ImageSpan, ...], ...]
    images: ColumnMask
    padding: ColumnMask
    plain: PatternRun
    patch: Intervention | None
    patched: PatternRun | None
    donors: dict[int, Tensor]
    sinks_by: EAH

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each entry of the head axis: `L1H3`."""
        return tuple(name_head(layer, head) for layer, head in self.heads)

    @property
    def runs(self) -> dict[RunName, PatternRun]:
        """The runs that there are, by name."""
        runs: dict[RunName, PatternRun] = {"plain": self.plain}
        return runs if self.patched is None else runs | {"patched": self.patched}

    def frame(self) -> pd.DataFrame:
        """List every weight.

        Returns:
            Columns `item layer head name query read_at token place plain sink`, and of
            a patched run `patched patched_sink change`. `query` and `read_at` are
            positions; `place` is `image`, `text` or `padding`, of what is read.
        """
        n_items, n_heads, n_rows, n_keys = self.plain.rows.shape
        table = pd.MultiIndex.from_product(
            [range(n_items), range(n_heads), self.positions.tolist(), range(n_keys)],
            names=["item", "which", "query", "read_at"],
        ).to_frame(index=False)
        which = table.pop("which").to_numpy()
        layer_head = torch.tensor(self.heads).numpy()[which]
        table.insert(1, "layer", layer_head[:, 0])
        table.insert(2, "head", layer_head[:, 1])
        table.insert(3, "name", [self.names[i] for i in which])
        at = table["item"].to_numpy(), table["read_at"].to_numpy()
        words = [list(row) for row in self.tokens]
        table["token"] = [words[i][k] for i, k in zip(*at, strict=True)]
        table["place"] = "text"
        table.loc[self.images.numpy()[at], "place"] = "image"
        table.loc[self.padding.numpy()[at], "place"] = "padding"
        for name, run in self.runs.items():
            wide = run.sinks.unsqueeze(2).expand(-1, -1, n_rows, -1)
            table[name] = run.rows.double().flatten().numpy()
            table["sink" if name == "plain" else f"{name}_sink"] = (
                wide.flatten().numpy()
            )
        if self.patched is not None:
            table["change"] = table["patched"] - table["plain"]
        return table

    def top(self, k: int = 10) -> pd.DataFrame:
        """List the `k` positions that each head attends to most, of each row.

        Of a patched run, those of the patched run.

        Args:
            k: How many.

        Raises:
            SettingsError: If `k` is below 1.
        """
        k = check_count("k", k)
        by = "plain" if self.patched is None else "patched"
        keys = ["item", "layer", "head", "query"]
        ordered = self.frame().sort_values(
            [*keys, by], ascending=[True] * 4 + [False], kind="stable"
        )
        return ordered.groupby(keys, sort=False).head(k).reset_index(drop=True)

    def row(
        self, head: str | tuple[int, int], *, item: int = 0, query: int = -1,
        run: RunName = "plain",
    ) -> Float[Tensor, " key"]:  # fmt: skip
        """Return one row of one head.

        Args:
            head: Such as `"L1H3"`.
            item: Which batch item.
            query: Its position; -1 is the last position of the prompt.
            run: Plain or patched.

        Raises:
            SettingsError: If an item, head, row or run is not there.
        """
        where = self.find_item(item), self.find_head(head), self.find_row(query)
        return self.find_run(run).rows[where]

    def picture(
        self,
        head: str | tuple[int, int],
        *,
        item: int = 0,
        query: int = -1,
        run: RunName = "plain",
        image: int = 0,
    ) -> tuple[Float[Tensor, "row column"], ...]:
        """Lay one row's attention out as the patches lie in the image.

        Args:
            head: Such as `"L1H3"`.
            item: Which batch item.
            query: The row's position.
            run: Plain or patched.
            image: Which image of the item.

        Returns:
            A grid for each part of the image (`spans[item][image].parts`: the whole,
            crops, tiles); NaN where a patch shows padding only.

        Raises:
            UnsupportedError: If image tokens have no place in the image.
            SettingsError: If an item, head, row, run or image is not there.
        """
        row = self.row(head, item=item, query=query, run=run)
        span = self.span(item, image=image)
        return lay_out(span, {column: float(row[column]) for column in span.columns})

    def span(self, item: int, *, image: int = 0) -> ImageSpan:
        """Return where an image of an item is.

        Raises:
            SettingsError: If there is no such item or image.
        """
        spans = self.spans[self.find_item(item)]
        number = to_int(image)
        if number is None or not 0 <= number < len(spans):
            got = show_value(image)
            msg = f"image {got} does not exist: expected 0 to {len(spans) - 1}"
            raise SettingsError(msg)
        return spans[number]

    def find_head(self, head: str | tuple[int, int]) -> int:
        """Find a head on the head axis.

        Raises:
            SettingsError: If it was not asked for.
        """
        pair = () if isinstance(head, str) else to_ints(head) or ()
        name = name_head(*pair) if len(pair) == 2 else head
        if not isinstance(name, str) or name not in self.names:
            listed = ", ".join(self.names)
            msg = f"{show_value(name)} was not read: expected one of {listed}"
            raise SettingsError(msg)
        return self.names.index(name)

    def find_row(self, query: int) -> int:
        """Find a prompt position on the row axis.

        Raises:
            SettingsError: If it was not asked for.
        """
        known, at = self.positions.tolist(), to_int(query)
        wanted = at + self.images.shape[1] if at is not None and at < 0 else at
        if wanted not in known:
            named = ", ".join(map(str, known[:12])) + (" ..." if known[12:] else "")
            got = show_value(query)
            msg = f"row {got} was not read: expected one of {named}; see query="
            raise SettingsError(msg)
        return known.index(wanted)

    def find_item(self, item: int) -> int:
        """Check that a batch item is there.

        Raises:
            SettingsError: If it is not.
        """
        index = to_int(item)
        if index is None or not 0 <= index < len(self.tokens):
            got = show_value(item)
            msg = f"item {got} does not exist: expected 0 to {len(self.tokens) - 1}"
            raise SettingsError(msg)
        return index

    def find_run(self, run: str) -> PatternRun:
        """Find a run by its name.

        Raises:
            SettingsError: If it was not asked for.
        """
        runs = {str(name): found for name, found in self.runs.items()}
        if not isinstance(run, str) or run not in runs:
            msg = (
                f"run={show_value(run)} is not there: expected "
                f"{' or '.join(runs)}; a patched "
                "run is made by read_patterns(..., patch=)"
            )
            raise SettingsError(msg)
        return runs[run]

    def plot(
        self,
        image: "ImageLike",
        *,
        item: int = 0,
        heads: Sequence[str | tuple[int, int]] | None = None,
        query: int = -1,
        number: int = 0,
        outline: bool = True,
    ) -> "Figure":
        """Draw what heads attend to on the image, plain beside patched.

        Colour is clear at zero and opaque at the largest weight, on one scale for all
        panels; the head's vision sinks in that run are outlined. Each title says how
        much of the row goes to this image: the rest goes to other tokens.

        Args:
            image: The original image.
            item: Which batch item.
            heads: Some of the heads that were read, such as `["L1H3"]`; all when None.
            query: Position of the row that is drawn; -1 is the prompt's last.
            number: Which image of the item it is.
            outline: Whether to outline vision sinks.

        Returns:
            A matplotlib figure, one column wide of one or two panels abreast.

        Raises:
            UnsupportedError: If image tokens have no known place in the image.
            SettingsError: If an item, head, row or image is not there.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.overlays import Panel, plot_attention_panels

        span = self.span(item, image=number)
        panels = []
        listed = self.heads if heads is None else to_list(heads)
        if not listed:
            got = show_value(heads)
            raise SettingsError(f"heads must be a list of heads, got {got}")
        for index in map(self.find_head, listed):
            head = self.heads[index]
            for run, of_run in self.runs.items():
                asked: Any = {"item": item, "query": query, "run": run}
                grids = self.picture(head, image=number, **asked)
                share = float(self.row(head, **asked)[list(span.columns)].sum())
                title = self.names[index] + (f" {run}" if len(self.runs) > 1 else "")
                sinks = of_run.sinks[item, index].nonzero().flatten().tolist()
                panels.append(Panel(f"{title}, {share:.0%}", grids, sinks))
        return plot_attention_panels(
            image, span.parts, panels, of_a_head=len(self.runs), outline=outline
        )

    def group(
        self,
        *,
        item: int = 0,
        run: RunName = "plain",
        by: "By" = "image",
        keep: Iterable[int] = (),
    ) -> "GroupedPatterns":
        """Put an image's tokens together, so that a pattern can be read.

        A group gets the sum of the attention that its tokens get, and pays the mean of
        what they pay. Rows sum to what they summed to. Text tokens stay as they are,
        padding is left out.

        Args:
            item: Which batch item.
            run: Plain or patched.
            by: `"image"`: an image is one token, `[image 1]`. `"part"`: each of its
                grids is (overview, crops, tiles). `"row"`: each row of patches is.
            keep: Positions of image tokens that stay by themselves, `<patch:r3c5>`,
                such as vision sinks.

        Returns:
            The grouped rows.

        Raises:
            SettingsError: If `by`, the item or the run is unknown.
            InputError: If a position to keep holds no image token of this item.
        """
        from eah_interp.viz.circuits import group_rows

        return group_rows(
            self.find_run(run).rows[self.find_item(item)],
            names=self.names,
            positions=self.positions,
            tokens=self._tokens(item),
            by=by,
            keep=keep,
        )

    def show(
        self,
        *,
        item: int = 0,
        run: RunName = "plain",
        by: "By" = "image",
        keep: Iterable[int] = (),
    ) -> "Widget":
        """Show whole patterns of heads, as CircuitsVis's attention heads.

        The arguments are those of `group`.

        Returns:
            A widget: `save` it, show it in a notebook, or share a page with others.

        Raises:
            SettingsError: If only some rows were read, or the item or run is not there.
            InputError: If a position to keep holds no image token.
        """
        from eah_interp.viz.circuits import show_whole

        return show_whole(self.group(item=item, run=run, by=by, keep=keep), run=run)

    def show_tokens(
        self,
        *,
        item: int = 0,
        query: int = -1,
        by: "By" = "image",
        keep: Iterable[int] = (),
        images: "ImageLike | Sequence[ImageLike]" = (),
    ) -> "Widget":
        """Show what one row of each head attends to, as CircuitsVis's coloured tokens.

        Args:
            item: Which batch item.
            query: Position of the row; its own attention, not a mean.
            by: As for `group`.
            keep: As for `group`.
            images: The item's images: what image tokens stand for is then shown before
                their labels.

        Returns:
            A widget with a button for each head, plain and patched.

        Raises:
            SettingsError: If the row or item is not there.
            InputError: If a position to keep holds no image token, or there is not one
                image for each of the item's.
            UnsupportedError: If images are given, and it is not known what grids show.
        """
        from eah_interp.viz.circuits import show_rows

        place, item = self.find_row(query), self.find_item(item)
        several = len(self.runs) > 1
        return show_rows(
            {
                name + (f" {run}" if several else ""): row
                for run, of_run in self.runs.items()
                for name, row in zip(
                    self.names, of_run.rows[item, :, place], strict=True
                )
            },
            tokens=self._tokens(item),
            position=int(self.positions[place]),
            by=by,
            keep=keep,
            images=images,
        )

    def _tokens(self, item: int) -> "Tokens":
        from eah_interp.viz.circuits import Tokens

        padded = self.padding[item].tolist()
        return Tokens(self.tokens[item], padded, self.spans[item])


# ---- What some heads attend to from some positions, plain and under a patch.


SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
"""How SentencePiece and byte-level tokenizers write a space before a word."""


def read_patterns(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    heads: Sequence[NodeName],
    query: int | Sequence[int] | Literal["all"] = -1,
    patch: Intervention | None = None,
    definition: Definition | None = None,
    beta: float | None = None,
) -> HeadPatterns:
    """Read what heads attend to from some positions, and which columns are sinks.

    The weights are recomputed in float32 from the queries and keys of the attention
    call, whatever the backend: `softmax(q k^T / sqrt(d_head) + mask)` with all that the
    call says of scale, caps, windows and learned sinks. Of a patched run they are those
    that heads attend with: in a patched layer, the donor's. Only the asked rows of the
    asked heads are kept; no whole `[batch, head, query, key]` is made.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        heads: Which heads, such as `["L1H3", (2, 0)]`.
        query: Position or positions that attend, padding counted; negative ones count
            from the end. `-1`, the prompt's last token, says what the first word of the
            answer is read from. `"all"` keeps whole patterns of these heads.
        patch: Settings of a second, patched run: `EAH()`, or any intervention.
        definition: Of a vision sink; the patch's, or `"visible"`, when None.
        beta: Its threshold; the definition's own when None.

    Returns:
        Rows and sinks, on the CPU.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If a head, layer or position does not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model is a patched twin, or layers read unlike keys.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = read_patterns(eah.load(), random_image(), heads=["L1H3", "L2H0"])
        >>> found.names, tuple(found.plain.rows.shape)[:3]
        (('L1H3', 'L2H0'), (1, 2, 1))
        >>> found.picture("L1H3")[0].shape  # the attention paid to 10 x 10 patches
        torch.Size([10, 10])
    """
    check_unedited(model)
    asked = find_nodes(model, heads)
    blocks = [node.name for node in asked if node.head is None]
    if blocks:
        msg = f"{', '.join(blocks)} has no pattern: expected heads, such as L1H3"
        raise SettingsError(msg)
    named = tuple((node.layer, int(node.head or 0)) for node in asked)
    if patch is not None:
        model.check(patch)
    settings = _choose_settings(patch, definition, beta)
    encoding, prompt_mask = open_question(model, images, prompts)
    positions = _find_positions(query, int(encoding["input_ids"].shape[1]))
    asked_of = _Asked(encoding, prompt_mask, named, positions, settings)
    plain = _run(model, asked_of, None)
    patched = None if patch is None else _run(model, asked_of, patch)
    return HeadPatterns(
        heads=named,
        positions=torch.tensor(positions),
        tokens=write_tokens(model, encoding["input_ids"]),
        spans=model.spans(encoding),
        images=plain.images,
        padding=plain.padding,
        plain=plain.found,
        patch=patch,
        patched=None if patched is None else patched.found,
        donors={} if patched is None else patched.donors,
        sinks_by=settings,
    )


def _choose_settings(
    patch: Intervention | None, definition: Definition | None, beta: float | None
) -> EAH:
    if definition is None and isinstance(patch, EAH):
        definition = patch.definition
        beta = patch.beta if beta is None else beta
    return EAH(definition="visible" if definition is None else definition, beta=beta)


@dataclass(frozen=True)
class _Asked:
    """What is read of every run."""

    encoding: Mapping[str, Any]
    prompt_mask: ColumnMask | None
    heads: tuple[tuple[int, int], ...]
    positions: list[int]
    settings: EAH


@dataclass(frozen=True)
class _Read:
    """What was read of one run."""

    found: PatternRun
    images: Tensor
    padding: Tensor
    donors: dict[int, Tensor]


def _run(model: Any, asked: _Asked, patch: Intervention | None) -> _Read:
    """Run a model once, and read the heads at their layers.

    Raises:
        UnsupportedError: If the layers do not read the same keys.
    """
    rows: dict[tuple[int, int], Tensor] = {}
    sinks: dict[tuple[int, int], Tensor] = {}
    prompts: list[Prompt] = []

    def look(point: PatchPoint) -> None:
        own = [head for layer, head in asked.heads if layer == point.layer]
        read = read_rows(point, asked.positions, own).cpu()
        found = score_run(point, asked.settings.definition, heads=own)
        marked = found.sinks(float(asked.settings.beta or 0)).cpu()
        for index, head in enumerate(own):
            rows[point.layer, head] = read[:, index]
            sinks[point.layer, head] = marked[:, head]
        prompts.append(point.prompt)

    donors = visit_layers(
        model,
        asked.encoding,
        look,
        layers=sorted({layer for layer, _ in asked.heads}),
        patch=patch,
        prompt_mask=asked.prompt_mask,
    )
    widths = {row.shape[-1] for row in rows.values()}
    if len(widths) > 1:
        msg = (
            f"the heads' layers read {sorted(widths)} keys, so their patterns have no "
            "common axis: expected heads of layers that read alike; read them apart"
        )
        raise UnsupportedError(msg)
    (width,) = widths
    return _Read(
        found=PatternRun(
            rows=torch.stack([rows[head] for head in asked.heads], 1),
            sinks=torch.stack([sinks[head] for head in asked.heads], 1),
        ),
        images=prompts[0].image_mask[:, :width].cpu(),
        padding=~prompts[0].token_mask[:, :width].cpu(),
        donors=donors,
    )


def _find_positions(
    query: int | Sequence[int] | Literal["all"], width: int
) -> list[int]:
    """Find which positions are meant, counted from the front.

    Raises:
        SettingsError: If one does not exist, is named twice, or there is none.
    """
    if isinstance(query, str) and query == "all":
        return list(range(width))
    listed = to_ints(query) or ()
    beyond = [q for q in listed if not -width <= q < width]
    found = [q % width for q in listed]
    if beyond or not found or len(set(found)) < len(found):
        msg = (
            f"query={query!r} does not fit a prompt of {width} tokens: expected "
            f'positions from {-width} to {width - 1}, each once, or "all"'
        )
        raise SettingsError(msg)
    return found


def write_tokens(model: Any, ids: Tensor) -> tuple[tuple[str, ...], ...]:
    """Write every token as text; as its number where there is no tokenizer.

    Example:
        >>> import eah_interp as eah
        >>> write_tokens(eah.load(), torch.tensor([[5, 6]]))[0] == ("5", "6")
        False
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        return tuple(tuple(map(str, row)) for row in ids.tolist())
    return tuple(
        tuple(_write(tokenizer, number) for number in row) for row in ids.tolist()
    )


def _write(tokenizer: Any, number: int) -> str:
    """Write one token, with the space before a word that decoding alone drops."""
    piece = str(tokenizer.convert_ids_to_tokens(number))
    text = str(tokenizer.decode([number]))
    return f" {text}" if piece[:1] in SPACES and not text.startswith(" ") else text
