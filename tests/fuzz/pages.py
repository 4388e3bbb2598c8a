"""Pages and widgets: CircuitsVis inputs, overlays, and one image's report."""

from pathlib import Path
from typing import Any

from eah_interp import viz
from eah_interp.report import inspect_image, write_report
from tests.fuzz.attributions import result
from tests.fuzz.harness import Input, Target
from tests.fuzz.models import QUESTION, model, odd_image, odd_prompt, picture
from tests.fuzz.values import Rng, change, input_of, odd, odd_text, pick


def nothing(found: Any) -> None:
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


def make_widget(rng: Rng, folder: Path) -> Input:
    found = result(pick(rng, ["patterns-plain", "patterns-patched"]))
    options: dict[str, Any] = {"item": 0, "run": "plain", "by": "image", "keep": ()}
    way = int(rng.integers(5))
    if way == 0:
        function = pick(rng, [viz.group_patterns, viz.show_attention])
        if rng.random() < 0.05:
            return input_of(function, odd(rng), then=nothing)

        def use(made: Any) -> Any:
            return made.frame() if hasattr(made, "frame") else made.fragment()

        return input_of(function, found, then=use, **change(rng, options))
    if way == 1:
        values = {"item": 0, "query": -1, "by": "image", "keep": (), "images": ()}
        if rng.random() < 0.4:
            values["images"] = odd_image(rng)
        changed = change(rng, values)
        return input_of(viz.show_tokens, found, then=lambda w: w.fragment(), **changed)
    if way == 2:
        values = {"element": "AttentionPatterns", "properties": {"a": 1}, "caption": ""}
        changed = change(rng, values)
        return input_of(viz.Widget, then=lambda w: w.fragment(), **changed)
    widget = found.show_tokens()
    if way == 3:
        out = pick(rng, [folder / "a.html", folder, folder / "no" / "a.html", odd(rng)])
        return input_of(widget.save, out)
    values = change(rng, {"widgets": [widget], "path": folder / "a.html", "title": "a"})
    if rng.random() < 0.3:
        values["title"] = odd_text(rng)
    return input_of(viz.save_page, **values)


def make_overlay(rng: Rng, folder: Path) -> Input:
    found = result(pick(rng, ["picture-plain", "picture-patched"]))
    span = found.spans[0][0]
    way = int(rng.integers(4))
    if way == 0:
        columns = pick(rng, [[], span.columns[:2], [10**6], odd(rng)])
        image = odd_image(rng)
        return input_of(viz.draw_sinks, image, span, columns=columns, then=nothing)
    if way == 1:
        columns = pick(rng, [{}, {"a": span.columns[:1]}, {"a": []}, odd(rng)])
        return input_of(viz.plot_sinks, picture(), span, columns=columns, then=nothing)
    if way == 2:
        values = change(
            rng,
            {"target": 0, "heads": None, "sign": "both", "number": 0, "outlined": ()},
        )
        image = picture() if rng.random() < 0.7 else odd_image(rng)
        return input_of(found.plot, image, then=nothing, **values)
    patterns = result("patterns-patched")
    values = change(
        rng, {"item": 0, "heads": None, "query": -1, "number": 0, "outline": True}
    )
    image = picture() if rng.random() < 0.7 else odd_image(rng)
    return input_of(viz.plot_attention, patterns, image, then=nothing, **values)


def make_report(rng: Rng, folder: Path) -> Input:
    values: dict[str, Any] = {"questions": QUESTION, "objects": [], "absent": []}
    values |= {"eah": None, "caption": False, "title": None, "max_new_tokens": 2}
    values |= {"answer_start": "There is a", "name": None, "command": ""}
    if rng.random() < 0.5:
        values["questions"] = odd_prompt(rng)
    if rng.random() < 0.3:
        values["objects"] = pick(
            rng, [["boat"], ["no such thing"], ["boat", "boat"], [""]]
        )
    changed = change(rng, values, most=1)
    image = picture() if rng.random() < 0.6 else odd_image(rng)
    out = folder / "page.html" if rng.random() < 0.8 else odd(rng)

    def use(found: Any) -> Any:
        return write_report(found, out)

    return input_of(inspect_image, model(), image, then=use, **changed)


TARGETS = {
    "widgets": Target(make_widget, 2_500),
    "overlays": Target(make_overlay, 1_200),
    "report": Target(make_report, 120),
}
