"""Exact patching of any node at any place: streams, MLPs, attention, the embedding.

`patch_heads` asks of heads; this asks of what else stands in the table of hook points,
and of some positions alone ("causal tracing"; Meng et al., "Locating and Editing
Factual Associations in GPT", arXiv:2202.05262).
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eah_interp.arguments import by_name, check_flag
from eah_interp.attribution.averages import ObjectResult
from eah_interp.attribution.cases import Ask, asks
from eah_interp.attribution.chunks import show_items
from eah_interp.attribution.edge_runs import attention_writer, mlp_writer
from eah_interp.attribution.node_places import Where, check_places
from eah_interp.attribution.readouts import MetricName, Target, TargetValues
from eah_interp.attribution.replay import (
    AtCall,
    Replay,
    check_batch_size,
    choose_batch_size,
    in_batches,
    prepare_replay,
)
from eah_interp.attribution.results import (
    check_finite_result,
    check_target,
    label_cell,
    label_targets,
    largest,
    name_head,
    name_targets,
)
from eah_interp.attribution.runs import Recording, record
from eah_interp.attribution.sources import (
    PathSource,
    average_over,
    check_source,
    pose_both,
)
from eah_interp.errors import ModelError, SettingsError, show_value
from eah_interp.indices import check_integer, to_list
from eah_interp.interventions.intervention import Intervention
from eah_interp.lvlm.anatomy import Anatomy, name_model
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.module_hooks import first_output, hook_stream
from eah_interp.shown_results import list_largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- Which nodes there are.


KINDS = (
    "layers_input",
    "heads_output",
    "attentions_output",
    "mlps_output",
    "layers_output",
)
"""Hook points that can be patched, in the order of a layer."""

_INDEXED = re.compile(rf"({'|'.join(KINDS)})(?:\[(-?\d+)\])?")

_HEAD = re.compile(r"L(\d+)H(\d+)")


@dataclass(frozen=True)
class Point:
    """A hook point of one layer, or one head of it.

    Attributes:
        name: `layers_output[3]`, `L3H7`, `embedding`.
        kind: The hook point.
        layer: Decoder layer.
        head: The head, where it is one alone.
    """

    name: str
    kind: str
    layer: int
    head: int | None = None


def find_points(model: Any, wanted: str | Sequence[str]) -> tuple[Point, ...]:
    """Find hook points by name; of every layer where none is named.

    Raises:
        SettingsError: If there is none, one is named twice, or one does not exist.
        ModelError: If a layer has no such hook point.

    Example:
        >>> import eah_interp as eah
        >>> found = find_points(eah.load(), ["L1H2", "mlps_output[-1]"])
        >>> [point.name for point in found]
        ['L1H2', 'mlps_output[7]']
        >>> len(find_points(eah.load(), "layers_output"))
        8
    """
    anatomy: Anatomy = model.anatomy
    listed = [wanted] if isinstance(wanted, str) else to_list(wanted)
    found: list[Point] = []
    for name in listed or [wanted]:
        named = _INDEXED.fullmatch(name) if isinstance(name, str) else None
        head = _HEAD.fullmatch(name) if isinstance(name, str) else None
        if isinstance(name, str) and name == "embedding":
            found.append(Point("embedding", "layers_input", 0))
        elif head is not None:
            layer, number = int(head[1]), int(head[2])
            anatomy.site(layer)
            if number >= model.n_heads:
                msg = f"{name} does not exist: expected heads 0 to {model.n_heads - 1}"
                raise SettingsError(msg)
            point = Point(name_head(layer, number), "heads_output", layer, number)
            found.append(point)
        elif named is not None:
            found += _of_layers(anatomy, named[1], named[2])
        else:
            msg = (
                f"{show_value(name)} is no node: expected a head such as L3H7, "
                f'"embedding", or one of {", ".join(KINDS)}, of one layer as in '
                f"{KINDS[-1]}[3] or of all"
            )
            raise SettingsError(msg)
    names = [point.name for point in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"nodes: {', '.join(twice)} is named twice: expected every node once"
        raise SettingsError(msg)
    return tuple(found)


def _of_layers(anatomy: Anatomy, kind: str, index: str | None) -> list[Point]:
    n_layers = anatomy.n_layers
    layers = range(n_layers)
    if index is not None:
        layer = int(index) + n_layers * (int(index) < 0)
        if not 0 <= layer < n_layers:
            msg = f"{kind}[{index}] does not exist: expected 0 to {n_layers - 1}"
            raise SettingsError(msg)
        layers = range(layer, layer + 1)
    points = [Point(f"{kind}[{layer}]", kind, layer) for layer in layers]
    lost = [point for point in points if not _exists(anatomy, point)]
    if (index is not None and lost) or len(lost) == len(points):
        if kind == "heads_output":
            anatomy.site(lost[0].layer)
        msg = (
            f"{lost[0].name} does not exist: no module of layer {lost[0].layer} "
            "returns it, by the source of its forward and a run at load"
        )
        raise ModelError(msg)
    return [point for point in points if point not in lost]


def _exists(anatomy: Anatomy, point: Point) -> bool:
    if point.kind == "heads_output":
        return point.layer in anatomy.sites
    if point.kind == "attentions_output":
        return anatomy.writers[point.layer].attention is not None
    if point.kind == "mlps_output":
        return anatomy.writers[point.layer].mlp is not None
    return True


# ---- Effects of nodes at places, labelled: the result of `patch_nodes`.


@dataclass(frozen=True, eq=False, repr=False)
class NodePatching(ObjectResult):
    """How targets change when nodes have what they have in another run, at some places.

    Attributes:
        metric: What was read.
        targets: What each number is about.
        source: Where it was taken from: a run, `"zero"`, `"mean"` or `"resampled"`.
        source_patch: Settings of the source; None where it is no patched run.
        nodes: What was patched: `layers_output[3]`, `L3H7`.
        places: Where: `object`, `last`.
        values: The targets in the run as it is.
        source_values: The targets in the source run; None where it is no run of an
            item's own.
        effects: Change of each target by each node at each place.
    """

    metric: MetricName
    targets: tuple[Target, ...]
    source: str
    source_patch: Intervention | None
    nodes: tuple[str, ...]
    places: tuple[str, ...]
    values: TargetValues
    source_values: TargetValues | None
    effects: Float[Tensor, "target node place"]

    def frame(self) -> pd.DataFrame:
        """List every node at every place, of every target.

        Returns:
            Columns `object present row position target node place name effect value`;
            `name` is both, `layers_output[3] at last`.
        """
        shape = self.effects.shape
        index = pd.MultiIndex.from_product(
            [range(size) for size in shape], names=["target", "node", "place"]
        ).to_frame(index=False)
        which, where = index.pop("node"), index.pop("place")
        table = label_targets(index, self.targets)
        table["node"] = [self.nodes[i] for i in which]
        table["place"] = [self.places[i] for i in where]
        table["name"] = [
            f"{self.nodes[i]} at {self.places[j]}"
            for i, j in zip(which, where, strict=True)
        ]
        table["effect"] = self.effects.double().flatten().numpy()
        table["value"] = self.values.double().numpy()[table["target"]]
        return table

    def _about(self) -> str:
        return (
            f"{self.source} into plain, {name_targets(self.targets)}, "
            f"{len(self.nodes)} nodes at {', '.join(self.places)}, metric "
            f"{self.metric}; largest effect first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            name = f"{self.nodes[cell[1]]} at {self.places[cell[2]]}"
            return label_cell(self.targets, cell[0]) | {"name": name}

        columns = {"effect": self.effects}
        columns["value"] = self.values[:, None, None].expand_as(self.effects)
        return list_largest(columns, by="effect", k=k, label=label)

    def top(self, k: int = 10) -> pd.DataFrame:
        """List each target's `k` nodes and places with the largest effects.

        Raises:
            SettingsError: If `k` is below 1.
        """
        return largest(self.frame(), k, by="effect")

    def plot(self, target: int = 0, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one target's effects by node and place.

        Args:
            target: Which target.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            ExtraMissingError: If matplotlib is not installed.
            SettingsError: If there is no such target.
        """
        from eah_interp.viz.heads import plot_values

        check_target(self.targets, target)
        figure = plot_values(
            self.effects[target],
            title=f"effect on {self.targets[target].label}",
            rows="",
            columns=f"{self.source} into plain",
            ax=ax,
        )
        axes = figure.axes[0] if ax is None else ax
        every = -(-len(self.nodes) // _MOST_NAMES)
        shown = range(0, len(self.nodes), every)
        axes.set_yticks(list(shown), [self.nodes[i] for i in shown])
        axes.set_xticks(range(len(self.places)), list(self.places))
        return figure


_MOST_NAMES = 40


# ---- Runs in which nodes have what they are given at some places.


@dataclass(frozen=True)
class Values:
    """What nodes have in a run.

    Attributes:
        run: The run.
        entering: The stream that enters each layer.
        blocks: What modules return, by path, with one row.
    """

    run: Recording
    entering: dict[int, Tensor]
    blocks: dict[str, Tensor]

    def of(self, model: Any, point: Point) -> Tensor:
        """Return what a node has, `[1 position ...]`."""
        if point.kind == "layers_input":
            return self.entering[point.layer]
        if point.kind == "heads_output":
            return self.run.heads[point.layer]
        value = self.blocks[str(path_of(model.anatomy, point))]
        return value.view(1, -1, value.shape[-1])


def path_of(anatomy: Anatomy, point: Point) -> str | None:
    """Name the module that returns a hook point."""
    if point.kind == "mlps_output":
        return mlp_writer(anatomy, point.layer)
    if point.kind == "attentions_output":
        return attention_writer(anatomy, point.layer)
    return f"{anatomy.layers}.{point.layer}"


def record_values(
    model: Any, case: Any, patch: Intervention | None, points: Sequence[Point]
) -> Values:
    """Run one item, and keep what some nodes have."""
    root: nn.Module = model._module
    entering: dict[int, Tensor] = {}
    blocks: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for point in points:
            if point.kind == "layers_input":
                layer = root.get_submodule(f"{model.anatomy.layers}.{point.layer}")
                handle = hook_stream(layer, _note_stream(entering, point.layer))
            elif point.kind == "heads_output":
                continue
            else:
                path = str(path_of(model.anatomy, point))
                module = root.get_submodule(path)
                handle = module.register_forward_hook(_note_output(blocks, path))
            stack.callback(handle.remove)
        run = record(model, case, patch)
    return Values(run, entering, blocks)


def _note_stream(entering: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def note(stream: Tensor) -> None:
        entering[layer] = stream

    return note


def _note_output(blocks: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        blocks[path] = first_output(output)

    return hook


Change = tuple[int, Tensor, Tensor]
"""A row, where it is changed, `[position]`, and to what, `[position ...]`."""

Job = tuple[Point, Tensor, Tensor]
"""A node, where it is changed, and to what."""


@torch.no_grad()
def run_changed(
    model: Any, replay: Replay, jobs: Sequence[Job | None], *, start: int
) -> Tensor:
    """Run copies of an item from a layer on; in each one node is changed, or none."""
    streams: dict[int, list[Change]] = {}
    calls: dict[int, list[tuple[int | None, Change]]] = {}
    blocks: dict[str, list[Change]] = {}
    for row, job in enumerate(jobs):
        if job is None:
            continue
        point, where, value = job
        change = (row, where, value)
        if point.kind == "layers_input":
            streams.setdefault(point.layer, []).append(change)
        elif point.kind == "heads_output":
            calls.setdefault(point.layer, []).append((point.head, change))
        else:
            blocks.setdefault(str(path_of(model.anatomy, point)), []).append(change)
    with _changed_streams(model, streams, len(jobs)):
        return replay.run(
            model,
            len(jobs),
            start=start,
            at_calls={layer: _set_heads(own) for layer, own in calls.items()},
            blocks={path: _set(own, len(jobs)) for path, own in blocks.items()},
        )


def _set(changes: Sequence[Change], n_rows: int) -> Callable[[Tensor], Tensor]:
    def change(output: Tensor) -> Tensor:
        lines = output.reshape(n_rows, -1, output.shape[-1]).clone()
        for row, where, value in changes:
            own = where.to(lines.device)
            lines[row, own] = value.to(lines)[own]
        return lines.view(output.shape)

    return change


def _set_heads(changes: Sequence[tuple[int | None, Change]]) -> AtCall:
    def change(layer: int, operation: Any, call: AttentionCall) -> None:
        del layer, call
        output = operation.output
        heads = output[0].clone()
        for head, (row, where, value) in changes:
            own = where.to(heads.device).nonzero().flatten()
            if head is None:
                heads[row, own] = value.to(heads)[own]
            else:
                heads[row, own, head] = value.to(heads)[own, head]
        operation.output = (heads, *output[1:])

    return change


@contextlib.contextmanager
def _changed_streams(
    model: Any, streams: dict[int, list[Change]], n_rows: int
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for layer, changes in streams.items():
            path = f"{model.anatomy.layers}.{layer}"
            module = model._module.get_submodule(path)
            stack.callback(hook_stream(module, _set(changes, n_rows)).remove)
        yield


@by_name
@asks
def patch_nodes(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    nodes: str | Sequence[str] = "layers_output",
    positions: Where = "all",
    source: PathSource = "plain",
    source_images: object = None,
    source_prompts: object = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **asked: Unpack[Ask],
) -> NodePatching:
    """Put any node of one run into another, at some places, and measure an object.

    A patch's effect is the target's value with the patch minus without: exact, through
    everything that comes after it. Patched over layers and places it shows where what
    tells two images (or prompts) apart is, and where it goes.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        nodes: Hook points, named as in a trace: `"layers_input"`, `"layers_output"`
            (the stream before and after a layer), `"heads_output"`,
            `"attentions_output"`, `"mlps_output"`, each of one layer
            (`"layers_output[3]"`) or of all; a head (`"L3H7"`); `"embedding"`, what
            enters the first layer.
        positions: Where: `"all"`, `"image"`, `"text"`, `"question"` (the text behind
            the image), `"object"` (where the prompt writes an object's word),
            `"last"`; or several of these; positions; a box of the image, four floats
            (left, top, right, bottom) that are fractions of it; or a mapping of names
            to any of these.
        source: Where values are taken from, as for `patch_paths`: `"plain"`, settings,
            `"zero"`, `"mean"` (over the item's positions), `"resampled"`.
        source_images: Other images for the source (or a `Case`), whose tokens stand
            where those of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        batch_size: Most patched copies in one forward pass; by device and memory when
            None. Halved, with a warning, when memory runs out.
        seed: Which items `"resampled"` draws.
        progress: Whether to show a bar.
        **asked: What is read: `objects`, `metric`, `caption`, `synonyms` and `truth`,
            as for `pose`.

    Returns:
        Effects by target, node and place, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object,
            positions of source and target do not correspond, or a place has none.
        SettingsError: If a word cannot be spelled, or a node, place or source does not
            exist.
        ModelError: If a layer has no such hook point.
        UnsupportedError: If items of a batch are not independent in this model.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scene, without_object
        >>> scene = draw_scene(0, objects=["boat", "fish"])
        >>> found = patch_nodes(
        ...     eah.load(),
        ...     scene.pil(),
        ...     "Is there a boat in the image?",
        ...     metric="yes_no",
        ...     source_images=without_object(scene, "boat").pil(),
        ...     positions=["image", "question", "last"],
        ... )
        >>> found.effects.shape
        torch.Size([1, 8, 3])
    """
    check_batch_size(batch_size)
    seed = check_integer("seed", seed)
    progress = check_flag("progress", progress)
    check_source(model, source)
    places = check_places(positions)
    points = find_points(model, nodes)
    posed = pose_both(
        model,
        images,
        prompts,
        source=source,
        source_images=source_images,
        source_prompts=source_prompts,
        seed=seed,
        **asked,
    )
    effects, values, theirs = [], [], []
    several = posed.case.n_items > 1
    for item in show_items(posed.items(), progress=progress and several):
        own = record_values(model, item.case, None, points)
        given = own
        if source not in ("zero", "mean"):
            given = record_values(model, item.other, item.patch, points)
        assert own.run.prompt is not None
        tokens = own.run.prompt.token_mask[0]
        masks = places.masks(model, own.run.case)
        replay = prepare_replay(model, own.run)
        jobs = [
            (point, mask, _stand(given.of(model, point), source, tokens)[0])
            for point in points
            for mask in masks
        ]
        starts = [point.layer for point, _, _ in jobs]
        # Each layer's first batch has a copy that is left alone, and changes are
        # relative to it: what a batch does to rounding cancels out.
        begun = sorted(set(starts))
        listed: list[tuple[int, Job | None]] = [(layer, None) for layer in begun]
        listed += zip(starts, jobs, strict=True)

        def measure(
            batch: list[tuple[int, Job | None]], replay: Replay = replay
        ) -> Tensor:
            own = [job for _, job in batch]
            return run_changed(model, replay, own, start=batch[0][0])

        found = in_batches(
            listed,
            measure,
            batch_size=batch_size or choose_batch_size(model, replay.n_tokens),
            key=lambda job: job[0],
            progress=progress and not several,
            label="patches",
        )
        alone = dict(zip(begun, found, strict=False))
        found = found[len(begun) :] - torch.stack([alone[layer] for layer in starts])
        shape = (len(points), len(masks), found.shape[-1])
        effects.append((item.targets, found.view(shape).movedim(-1, 0)))
        values.append((item.targets, own.run.values))
        theirs.append((item.targets, given.run.values))
    readout = posed.case.readout
    return check_finite_result(
        NodePatching(
            model=name_model(model),
            metric=readout.metric,
            targets=readout.targets,
            source=posed.name,
            source_patch=posed.patch,
            nodes=tuple(point.name for point in points),
            places=places.names,
            values=posed.gather(values),
            source_values=posed.gather(theirs) if posed.is_run else None,
            effects=posed.gather(effects),
        )
    )


def _stand(value: Tensor, source: PathSource, tokens: Tensor) -> Tensor:
    """Return what a node is given: the source's value, nothing, or its own mean."""
    if source == "zero":
        return torch.zeros_like(value)
    return average_over(tokens)(value) if source == "mean" else value
