"""Rows of heads' attention patterns, labelled: the result of `read_patterns`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eah_interp._types import ColumnMask, Definition, Tower
from eah_interp.arguments import by_name, check_count, check_flag
from eah_interp.attribution.nodes import NodeName, anatomy_of, find_nodes
from eah_interp.attribution.results import check_finite_result, name_head
from eah_interp.attribution.runs import (
    check_unedited,
    open_question,
    read_rows,
    score_run,
    visit_layers,
)
from eah_interp.attribution.words import (
    AnswerWord,
    answer_question,
    find_words,
    write_tokens,
)
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.indices import check_choice, to_int, to_ints, to_list
from eah_interp.interventions.eah import EAH
from eah_interp.interventions.in_tower import check_tower_settings
from eah_interp.interventions.intervention import Intervention, of_tower
from eah_interp.interventions.point import PatchPoint
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.prompt import Prompt
from eah_interp.lvlm.spans import ImageSpan, lay_out
from eah_interp.results import ModelResult, Part
from eah_interp.shown_results import count, list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.lvlm.images import ImageLike
    from eah_interp.viz.circuits import By, GroupedPatterns, Tokens
    from eah_interp.viz.widgets import Widget

# ---- What some heads attend to in one run.


RunName = Literal["plain", "patched"]
"""Which run."""

MEAN = "mean"
"""Name of the mean over every head of every layer, among heads."""


@dataclass(frozen=True, eq=False, repr=False)
class PatternRun(Part):
    """What some heads attend to in one run.

    Attributes:
        rows: Their patterns in some query rows. A row sums to one, or to less where a
            learned sink takes a share. NaN where an item's answer has no such row.
        sinks: Which image columns are their vision sinks; none of a mean over heads.
    """

    rows: Float[Tensor, "batch head row key"]
    sinks: Bool[Tensor, "batch head key"]


@dataclass(frozen=True, eq=False, repr=False)
class HeadPatterns(ModelResult):
    """Some query rows of some heads' attention patterns, plain and patched.

    Attributes:
        heads: Layer and head of each entry of the head axis; None for the mean over
            every head of every layer.
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
        words: The words of each item's answer, where they were asked for.
        tower: Whose heads: the `"language"` model's, or the `"vision"` tower's. There
            items are the images and tiles that it sees, positions their tokens in the
            order in which it holds them (windows one after the other), and `images`
            marks the patches among them; rows of padding are NaN.
    """

    heads: tuple[tuple[int, int] | None, ...]
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
    words: tuple[tuple[AnswerWord, ...], ...] = field(default=(), kw_only=True)
    tower: Tower = field(default="language", kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each entry of the head axis: `L1H3`, or `mean`."""
        return tuple(MEAN if head is None else name_head(*head) for head in self.heads)

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
            positions; `place` is `image`, `text` (in the vision tower `own`: class
            tokens and registers) or `padding`, of what is read. Where
            words were read, `word` and `said` are the number and the text of the word
            of which a token is predicted from `query`.
        """
        n_items, n_heads, n_rows, n_keys = self.plain.rows.shape
        table = pd.MultiIndex.from_product(
            [range(n_items), range(n_heads), self.positions.tolist(), range(n_keys)],
            names=["item", "which", "query", "read_at"],
        ).to_frame(index=False)
        self._name_heads(table, table.pop("which").tolist())
        # Columns without rows are of objects in pandas 2.
        at = table["item"].to_numpy(int), table["read_at"].to_numpy(int)
        words = [list(row) for row in self.tokens]
        table["token"] = [words[i][k] for i, k in zip(*at, strict=True)]
        table["place"] = "text" if self.tower == "language" else "own"
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
        return self._name_words(table) if self.words else table

    def _name_heads(self, table: pd.DataFrame, which: Sequence[int]) -> None:
        """Add layer, head and name of each row's entry of the head axis."""
        pairs = [(pd.NA, pd.NA) if head is None else head for head in self.heads]
        for place, label in enumerate(("layer", "head"), start=1):
            numbers = pd.array([pair[place - 1] for pair in pairs], dtype="Int64")
            table.insert(place, label, pd.Series(numbers.take(which)))
        table.insert(3, "name", [self.names[i] for i in which])

    def _name_words(self, table: pd.DataFrame) -> pd.DataFrame:
        """Name the word that each row predicts; leave out rows that predict none."""
        said = pd.DataFrame(
            [
                (item, query, number, word.text)
                for item, words in enumerate(self.words)
                for number, word in enumerate(words)
                for query in word.queries
            ],
            columns=["item", "query", "word", "said"],
        )
        return table.merge(said, on=["item", "query"], how="inner")

    def shares(self) -> pd.DataFrame:
        """List how much of its attention each row gives to each image.

        Returns:
            Columns `item layer head name query image plain`, and of a patched run
            `patched change`. Where words were read, `word` and `said` stand in the
            place of `query`, a row for each word of the item.
        """
        rows: list[dict[str, Any]] = []
        which: list[int] = []
        for item, spans in enumerate(self.spans):
            for head in range(len(self.heads)):
                for label, places in self._list_rows(item):
                    for number, span in enumerate(spans):
                        rows.append({"item": item, **label, "image": number})
                        which.append(head)
                        for name, run in self.runs.items():
                            row = run.rows[item, head, places].mean(0)
                            rows[-1][name] = float(row[list(span.columns)].sum())
        labels = ["word", "said"] if self.words else ["query"]
        table = pd.DataFrame(rows, columns=["item", *labels, "image", *self.runs])
        self._name_heads(table, which)
        if self.patched is not None:
            table["change"] = table["patched"] - table["plain"]
        return table

    def _list_rows(self, item: int) -> list[tuple[dict[str, Any], list[int]]]:
        """List what each of an item's rows is, with places on the row axis."""
        if self.words:
            return [
                ({"word": number, "said": word.text}, self._find_places(word))
                for number, word in enumerate(self.words[item])
            ]
        return [({"query": q}, [i]) for i, q in enumerate(self.positions.tolist())]

    def _find_places(self, word: AnswerWord) -> list[int]:
        known = self.positions.tolist()
        return [known.index(query) for query in word.queries]

    def _about(self) -> str:
        n_items, n_heads, n_rows, n_keys = self.plain.rows.shape
        heads = ", ".join(self.names[:6]) + (", ..." if n_heads > 6 else "")
        said = ""
        if self.words:
            said = f"; {count(sum(map(len, self.words)), 'word')} of answers"
        return (
            f"{count(n_items, 'item')}, {count(n_heads, 'head')} ({heads})"
            f"{of_tower(self.tower)}, "
            f"{count(n_rows, 'query row')} of {n_keys} positions{said}; largest weight "
            "first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            item, head, row, key = cell
            return {
                "item": item,
                "name": self.names[head],
                "query": int(self.positions[row]),
                "read_at": key,
                "token": self.tokens[item][key],
            }

        columns = {str(name): run.rows for name, run in self.runs.items()}
        return list_largest(columns, by=list(columns)[-1], k=k, label=label)

    def _picture(self) -> "Figure":
        if not self.words:
            return self.plot(heads=self.names[:2], query=int(self.positions[-1]))
        item = next((i for i, words in enumerate(self.words) if words), 0)
        return self.plot(item=item, heads=self.names[:1], words=self._first_words(item))

    def _first_words(self, item: int) -> range:
        return range(min(len(self.words[item]), 6))

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
        groups = ordered.groupby(keys, sort=False, dropna=False)
        return groups.head(k).reset_index(drop=True)

    def row(
        self, head: str | tuple[int, int], *, item: int = 0, query: int | None = None,
        run: RunName = "plain", word: int | None = None,
    ) -> Float[Tensor, " key"]:  # fmt: skip
        """Return one row of one head, or the row that a word was predicted from.

        Args:
            head: Such as `"L1H3"`, or `"mean"`.
            item: Which batch item.
            query: Its position; -1, the last position of the prompt, when None.
            run: Plain or patched.
            word: Number of a word of the answer, in the place of `query`. Of a word of
                several tokens, the mean of the rows that they were predicted from.

        Raises:
            SettingsError: If an item, head, row, run or word is not there, or a row and
                a word are named.
        """
        where = self.find_item(item), self.find_head(head)
        rows = self.find_run(run).rows[where]
        if word is None:
            query = -1 if query is None else query
            return rows[self.find_row(query, item=where[0])]
        if query is not None:
            msg = (
                f"query={show_value(query)} and word={show_value(word)} name two rows: "
                "expected one of them"
            )
            raise SettingsError(msg)
        return rows[self._find_places(self.find_word(word, item=item))].mean(0)

    def picture(
        self,
        head: str | tuple[int, int],
        *,
        item: int = 0,
        query: int | None = None,
        run: RunName = "plain",
        image: int = 0,
        word: int | None = None,
    ) -> tuple[Float[Tensor, "row column"], ...]:
        """Lay one row's attention out as the patches lie in the image.

        Args:
            head: Such as `"L1H3"`, or `"mean"`.
            item: Which batch item.
            query: The row's position; the prompt's last when None.
            run: Plain or patched.
            image: Which image of the item.
            word: Number of a word of the answer, as for `row`.

        Returns:
            A grid for each part of the image (`spans[item][image].parts`: the whole,
            crops, tiles); NaN where a patch shows padding only.

        Raises:
            UnsupportedError: If image tokens have no place in the image.
            SettingsError: If an item, head, row, run, word or image is not there.
        """
        row = self.row(head, item=item, query=query, run=run, word=word)
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
            has = f"0 to {len(spans) - 1}" if spans else "none: the item has no image"
            msg = f"image {got} does not exist: expected {has}"
            raise SettingsError(msg)
        return spans[number]

    def find_word(self, word: int, *, item: int = 0) -> AnswerWord:
        """Find a word of an item's answer.

        Raises:
            SettingsError: If words were not read, or there is no such word or item.
        """
        if not self.words:
            msg = (
                f"word {show_value(word)} was not read: expected a result of "
                "read_patterns(..., words=True); name a row with query="
            )
            raise SettingsError(msg)
        words, number = self.words[self.find_item(item)], to_int(word)
        if number is None or not 0 <= number < len(words):
            got = show_value(word)
            has = f"0 to {len(words) - 1}" if words else "none: the answer is empty"
            raise SettingsError(f"word {got} does not exist: expected {has}")
        return words[number]

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

    def find_row(self, query: int, *, item: int = 0) -> int:
        """Find a position on the row axis.

        Raises:
            SettingsError: If it was not asked for, or no word of the item's answer is
                predicted from it.
        """
        known, at = self.positions.tolist(), to_int(query)
        wanted = at + self.images.shape[1] if at is not None and at < 0 else at
        if wanted not in known:
            named = ", ".join(map(str, known[:12])) + (" ..." if known[12:] else "")
            got = show_value(query)
            instead = ", or name a word with word=" if self.words else ""
            msg = (
                f"row {got} was not read: expected one of {named}; see query={instead}"
            )
            raise SettingsError(msg)
        if self.tower == "vision" and bool(self.padding[item, wanted]):
            msg = (
                f"item {item} has no row {show_value(query)}, which is padding: "
                f"expected one of its {int((~self.padding[item]).sum())} tokens"
            )
            raise SettingsError(msg)
        if self.words and wanted not in self._list_queries(item):
            msg = (
                f"no word of the answer of item {item} is predicted from row "
                f"{show_value(query)}: expected one of {self._list_queries(item)}"
            )
            raise SettingsError(msg)
        return known.index(wanted)

    def _list_queries(self, item: int) -> list[int]:
        """List the positions that the words of an item's answer are predicted from."""
        return sorted(query for word in self.words[item] for query in word.queries)

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
        image: "ImageLike | None" = None,
        *,
        item: int = 0,
        heads: Sequence[str | tuple[int, int]] | str | None = None,
        query: int | None = None,
        words: Sequence[int] | None = None,
        number: int = 0,
        outline: bool = True,
        ax: "Axes | None" = None,
    ) -> "Figure":
        """Draw what heads attend to on the image, plain beside patched.

        Colour is clear at zero and opaque at the largest weight, on one scale for all
        panels; the head's vision sinks in that run are outlined. Each title says how
        much of the row goes to this image: the rest goes to other tokens. Where words
        were read, each head has a strip of panels, one for each word of the answer.

        Args:
            image: The original image; a white one when None.
            item: Which batch item.
            heads: Some of the heads that were read, such as `["L1H3"]`; all when None.
            query: Position of the row that is drawn; where no words were read, the
                prompt's last when None.
            words: Numbers of the words that are drawn; all when None.
            number: Which image of the item it is.
            outline: Whether to outline vision sinks.
            ax: Not taken: there is a panel for each head and run.

        Returns:
            A matplotlib figure, one column wide of one or two panels abreast.

        Raises:
            UnsupportedError: If image tokens have no known place in the image.
            SettingsError: If an item, head, row, word or image is not there, or axes
                are given.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.figures import refuse_axes
        from eah_interp.viz.overlays import (
            Panel,
            blank_image,
            plot_attention_panels,
            plot_attention_strips,
        )

        refuse_axes(ax, panels="a panel for each head and run")
        outline = check_flag("outline", outline)
        span = self.span(item, image=number)
        image = blank_image(span.parts) if image is None else image
        chosen = self._choose_words(item, query=query, words=words)
        strips: dict[str, list[Panel]] = {}
        for index in self._choose_heads(heads):
            for name, run in self.runs.items():
                title = self.names[index] + (f" {name}" if len(self.runs) > 1 else "")
                sinks = run.sinks[item, index].nonzero().flatten().tolist()
                strips[title] = []
                for word in [None] if chosen is None else chosen:
                    asked: Any = {"item": item, "query": query, "word": word}
                    asked |= {"head": self.names[index], "run": name}
                    grids = self.picture(**asked, image=number)
                    share = float(self.row(**asked)[list(span.columns)].sum())
                    said = f"{title}, "
                    if word is not None:
                        said = f"{self.words[item][word].text}\n"
                    strips[title].append(Panel(f"{said}{share:.0%}", grids, sinks))
        if chosen is not None:
            return plot_attention_strips(image, span.parts, strips, outline=outline)
        return plot_attention_panels(
            image,
            span.parts,
            [panel for panels in strips.values() for panel in panels],
            of_a_head=len(self.runs),
            outline=outline,
        )

    def _choose_heads(self, heads: object) -> list[int]:
        """Choose the heads that are drawn; all of them when None."""
        listed = [heads] if isinstance(heads, str) else to_list(heads)
        found = [
            self.find_head(h) for h in (self.names if heads is None else listed or ())
        ]
        if not found:
            got = show_value(heads)
            raise SettingsError(f"heads must be a list of heads, got {got}")
        return list(dict.fromkeys(found))

    def _choose_words(
        self, item: int, *, query: object, words: object
    ) -> list[int] | None:
        """Choose the words that are drawn; None where a row is drawn instead."""
        if words is None and (query is not None or not self.words):
            return None
        if query is not None:
            msg = (
                f"query={show_value(query)} and words={show_value(words)} name rows "
                "twice: expected one of them"
            )
            raise SettingsError(msg)
        said = self.words[self.find_item(item)] if self.words else ()
        listed = range(len(said)) if words is None else to_list(words)
        if words is None and not said:
            msg = (
                f"the answer of item {item} is empty: expected words to draw; draw "
                "another item"
            )
            raise SettingsError(msg)
        if not listed:
            msg = f"words must be a list of numbers of words, got {show_value(words)}"
            raise SettingsError(msg)
        for word in listed:
            self.find_word(word, item=item)
        return [int(word) for word in listed]

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

        item = self.find_item(item)
        asked = self.positions.tolist()
        of_item = self._list_queries(item) if self.words else asked
        if self.tower == "vision":
            of_item = [query for query in asked if not self.padding[item, query]]
        rows = self.find_run(run).rows[item]
        return group_rows(
            rows[:, [asked.index(query) for query in of_item]],
            names=self.names,
            positions=torch.tensor(of_item, dtype=torch.long),
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

        item = self.find_item(item)
        place = self.find_row(query, item=item)
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


@by_name
def read_patterns(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    heads: Sequence[NodeName] | NodeName | None = None,
    top: int | None = None,
    mean: bool = False,
    words: bool = False,
    query: int | Sequence[int] | Literal["all"] | None = None,
    patch: Intervention | None = None,
    definition: Definition | None = None,
    beta: float | None = None,
    max_new_tokens: int = 40,
    tower: Tower = "language",
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
        heads: Which heads, such as `"L1H3"`, `["L1H3", (2, 0)]` or `"L1H3,L2H0"`.
        top: So many heads more: those with the largest sink density of the prompt, as
            `score_sinks` scores it, in the mean over the batch.
        mean: Whether to read the mean over every head of every layer too, as `"mean"`.
        words: Whether to read the row that each word of an answer was predicted from.
            The answer is the model's own, generated greedily and without the patch, and
            read in both runs; of a `Case` with a caption, the caption.
        query: Position or positions that attend, padding counted; negative ones count
            from the end. `-1`, the prompt's last token, says what the first word of the
            answer is read from, and is taken when None. `"all"` keeps whole patterns of
            these heads. Not with `words`.
        patch: Settings of a second, patched run: `EAH()`, or any intervention.
        definition: Of a vision sink; the patch's, or `"visible"`, when None.
        beta: Its threshold; the definition's own when None.
        max_new_tokens: Longest answer that is generated, in tokens.
        tower: Whose heads: the `"language"` model's, or the `"vision"` tower's. Layers
            and heads are the tower's then, items the images and tiles that it sees
            (also where it packs them into one sequence), and `query` names tokens of an
            image, which it must; the patch acts in the tower.

    Returns:
        Rows and sinks, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or every answer is empty.
        SettingsError: If a head, layer or position does not exist, or no head is named.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model is a patched twin, layers read unlike keys, or
            what is asked of the vision tower has a meaning in prompts only.

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
    check_choice("tower", tower, Tower)
    named = _find_heads(model, heads, tower)
    n_top = 0 if top is None else check_count("top", top)
    mean, words = check_flag("mean", mean), check_flag("words", words)
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    if not named and not n_top and not mean:
        msg = (
            'no head is named: expected heads, such as heads="L1H3"; top=5 for those '
            "with the densest sinks; or mean=True for the mean over all heads"
        )
        raise SettingsError(msg)
    settings = _choose_settings(patch, definition, beta)
    _check_rows(words=words, query=query, tower=tower)
    _check_patch(model, settings, patch, tower=tower)
    encoding, prompt_mask = open_question(model, images, prompts)
    if n_top:
        densest = _find_densest(model, encoding, prompt_mask, settings, tower)
        if n_top > len(densest):
            msg = f"top must be 1 to {len(densest)} heads, got {n_top}"
            raise SettingsError(msg)
        named += tuple(head for head in densest[:n_top] if head not in named)
    said: tuple[tuple[AnswerWord, ...], ...] = ()
    if words:
        if prompt_mask is None:
            encoding, prompt_mask = answer_question(
                model, encoding, max_new_tokens=max_new_tokens
            )
        said = find_words(model, encoding, prompt_mask)
        positions = sorted({q for line in said for w in line for q in w.queries})
        if not positions:
            msg = (
                "the answers have no words, only space or special tokens: expected at "
                "least one word; leave words out to read the prompt's last row"
            )
            raise InputError(msg)
    elif tower == "language":
        width = int(encoding["input_ids"].shape[1])
        positions = _find_positions(-1 if query is None else query, width)
    else:  # how many tokens an image has, the tower will say
        positions = []
    wanted: tuple[tuple[int, int] | None, ...] = (*named, *([None] if mean else []))
    asked_of = _Asked(
        encoding, prompt_mask, wanted, positions, settings, said, tower, query
    )
    plain = _run(model, asked_of, None)
    patched = None if patch is None else _run(model, asked_of, patch)
    return check_finite_result(
        HeadPatterns(
            model=name_model(model),
            heads=wanted,
            positions=torch.tensor(asked_of.positions),
            **_describe_items(model, asked_of, plain),
            images=plain.images,
            padding=plain.padding,
            plain=plain.found,
            patch=patch,
            patched=None if patched is None else patched.found,
            donors={} if patched is None else patched.donors,
            sinks_by=settings,
            words=said,
            tower=tower,
        ),
        # An item that said fewer words than another has NaN for the others, and an
        # image that has fewer patches for rows that it has not.
        but=("rows",) if said or tower == "vision" else (),
    )


def _check_rows(
    *, words: bool, query: int | Sequence[int] | Literal["all"] | None, tower: Tower
) -> None:
    """Check that rows are named once, and that they are rows of the tower that is read.

    Raises:
        SettingsError: If rows are named twice, or none of the vision tower's is.
        UnsupportedError: If words are asked of the vision tower.
    """
    if words and query is not None:
        msg = (
            "words=True reads the rows of the answer's words: expected no query beside "
            f"it, got {show_value(query)}"
        )
        raise SettingsError(msg)
    if tower == "language":
        return
    if words:
        msg = (
            'patterns of the vision tower (tower="vision") cannot be read so: '
            "words=True reads rows of the language model's answer"
        )
        raise UnsupportedError(msg)
    if query is None:
        msg = (
            'no row of the vision tower is read last: expected query= with tower="'
            'vision", the number of a token or of several, or "all" for whole patterns'
        )
        raise SettingsError(msg)


def _check_patch(
    model: Any, settings: EAH, patch: Intervention | None, *, tower: Tower
) -> None:
    """Check that a patch and a definition of sinks fit the tower that is read.

    Raises:
        UnsupportedError: If they have no meaning in the vision tower.
    """
    if tower == "vision":
        if patch is not None:
            check_tower_settings(model, patch)
        if why := settings.why_not_in_tower():
            msg = f'sinks of the vision tower (tower="vision") cannot be marked: {why}'
            raise UnsupportedError(msg)
    elif patch is not None:
        model.check(patch)


def _describe_items(model: Any, asked: "_Asked", plain: "_Read") -> dict[str, Any]:
    """Describe what stands at the positions of each item, and where its images are."""
    if asked.tower == "vision":
        return {
            "tokens": _name_tokens(plain.images, plain.padding),
            "spans": _span_patches(plain.images),
        }
    return {
        "tokens": write_tokens(model, asked.encoding["input_ids"]),
        "spans": model.spans(asked.encoding),
    }


def _name_tokens(images: Tensor, padding: Tensor) -> tuple[tuple[str, ...], ...]:
    """Number an image's patches, and the tower's own tokens beside them."""
    named = []
    for item, own in enumerate(images.tolist()):
        counts = {"patch": 0, "own": 0, "padding": 0}
        line = []
        for place, is_patch in enumerate(own):
            padded = bool(padding[item, place])
            kind = "padding" if padded else "patch" if is_patch else "own"
            line.append(kind if padded else f"{kind} {counts[kind]}")
            counts[kind] += 1
        named.append(tuple(line))
    return tuple(named)


def _span_patches(images: Tensor) -> tuple[tuple[ImageSpan, ...], ...]:
    """Say which tokens are an item's patches; where these are is not known here."""
    found = []
    for item, own in enumerate(images):
        columns = tuple(own.nonzero().flatten().tolist())
        span = ImageSpan(item, 0, columns[0], columns[-1] + 1, columns, ())
        found.append((span,))
    return tuple(found)


def _find_heads(
    model: Any, heads: Sequence[NodeName] | NodeName | None, tower: Tower
) -> tuple[tuple[int, int], ...]:
    """Find heads by name; none when None.

    Raises:
        SettingsError: If one does not exist, or is no head.
    """
    if heads is None:
        return ()
    listed: Any = heads
    if to_list(heads) == []:
        msg = (
            "the list of heads is empty: expected at least one, such as (3, 7) or "
            '"L3H7"; leave heads out with top=5 or mean=True'
        )
        raise SettingsError(msg)
    if isinstance(heads, str):
        listed = [name.strip() for name in heads.split(",")]
    elif isinstance(heads, tuple) and len(heads) == 2 and to_ints(heads) is not None:
        listed = [heads]
    asked = find_nodes(model, listed, tower=tower)
    blocks = [node.name for node in asked if node.head is None]
    if blocks:
        msg = f"{', '.join(blocks)} has no pattern: expected heads, such as L1H3"
        raise SettingsError(msg)
    return tuple((node.layer, int(node.head or 0)) for node in asked)


def _find_densest(
    model: Any,
    encoding: Mapping[str, Any],
    prompt_mask: ColumnMask | None,
    settings: EAH,
    tower: Tower,
) -> list[tuple[int, int]]:
    """Find every head in the order of its sink density, the densest first."""
    density: dict[tuple[int, int], float] = {}

    def look(point: PatchPoint) -> None:
        found = score_run(point, settings.definition)
        for head, share in enumerate(found.density(float(settings.beta or 0)).mean(0)):
            density[point.layer, head] = float(share)

    visit_layers(
        model,
        encoding,
        look,
        layers=sorted(anatomy_of(model, tower).sites),
        prompt_mask=prompt_mask,
        tower=tower,
    )
    return sorted(density, key=lambda head: -density[head])


def _choose_settings(
    patch: Intervention | None, definition: Definition | None, beta: float | None
) -> EAH:
    if definition is None and isinstance(patch, EAH):
        definition = patch.definition
        beta = patch.beta if beta is None else beta
    return EAH(definition="visible" if definition is None else definition, beta=beta)


@dataclass
class _Asked:
    """What is read of every run; positions in the tower once it was seen."""

    encoding: Mapping[str, Any]
    prompt_mask: ColumnMask | None
    heads: tuple[tuple[int, int] | None, ...]
    positions: list[int]
    settings: EAH
    words: tuple[tuple[AnswerWord, ...], ...]
    tower: Tower
    query: Any

    def heads_of(self, layer: int) -> list[int]:
        """List the layer's heads that are asked for by themselves."""
        return [head[1] for head in self.heads if head and head[0] == layer]


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
    rows: dict[tuple[int, int] | None, Tensor] = {}
    sinks: dict[tuple[int, int] | None, Tensor] = {}
    prompts: list[Prompt] = []
    sums: dict[int, Tensor] = {}  # by width: one, unless layers read unlike keys
    of_all = None in asked.heads
    n_heads = 0

    def look(point: PatchPoint) -> None:
        nonlocal n_heads
        own = asked.heads_of(point.layer)
        if asked.tower == "vision" and not asked.positions:
            width = point.call.queries.shape[2]
            asked.positions = _find_positions(asked.query, width, whose="an image")
        every = list(range(point.call.n_heads)) if of_all else own
        read = read_rows(point, asked.positions, every).cpu()
        for head in own:
            rows[point.layer, head] = read[:, every.index(head)]
        if of_all:
            width = read.shape[-1]
            sums[width] = sums.get(width, 0) + read.double().sum(1)
            n_heads += len(every)
        if own:
            found = score_run(point, asked.settings.definition, heads=own)
            marked = found.sinks(float(asked.settings.beta or 0)).cpu()
            sinks.update({(point.layer, head): marked[:, head] for head in own})
        prompts.append(point.prompt)

    layers = {head[0] for head in asked.heads if head}
    donors = visit_layers(
        model,
        asked.encoding,
        look,
        layers=sorted(anatomy_of(model, asked.tower).sites if of_all else layers),
        patch=patch,
        prompt_mask=asked.prompt_mask,
        tower=asked.tower,
    )
    widths = {row.shape[-1] for row in rows.values()} | set(sums)
    if len(widths) > 1:
        msg = (
            f"the heads' layers read {sorted(widths)} keys, so their patterns have no "
            "common axis: expected heads of layers that read alike; read them apart"
        )
        raise UnsupportedError(msg)
    (width,) = widths
    if of_all:
        rows[None] = (sums[width] / n_heads).float()
        sinks[None] = torch.zeros_like(prompts[0].image_mask[:, :width]).cpu()
    whole = torch.stack([rows[head] for head in asked.heads], 1)
    for item, said in enumerate(asked.words):
        real = {query for word in said for query in word.queries}
        none = [place for place, q in enumerate(asked.positions) if q not in real]
        whole[item, :, none] = torch.nan
    if asked.tower == "vision":
        there = prompts[0].token_mask[:, asked.positions].cpu()
        whole = whole.masked_fill(~there[:, None, :, None], torch.nan)
    return _Read(
        found=PatternRun(
            rows=whole, sinks=torch.stack([sinks[head] for head in asked.heads], 1)
        ),
        images=prompts[0].image_mask[:, :width].cpu(),
        padding=~prompts[0].token_mask[:, :width].cpu(),
        donors=donors,
    )


def _find_positions(
    query: int | Sequence[int] | Literal["all"], width: int, *, whose: str = "a prompt"
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
            f"query={show_value(query)} does not fit {whose} of {width} tokens: "
            f'expected positions from {-width} to {width - 1}, each once, or "all"'
        )
        raise SettingsError(msg)
    return found
