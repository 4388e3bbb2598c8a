"""CircuitsVis widgets that need no network and share one copy of the JavaScript."""

import base64
import html
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from PIL import Image

from eah_interp.arguments import by_name, check_mapping, check_path, check_text
from eah_interp.errors import ExtraMissingError, SettingsError, show_value
from eah_interp.files import make_folder, save_bytes
from eah_interp.indices import check_choice, to_list
from eah_interp.results import Part

BUNDLE = Path("dist") / "cdn" / "iife.js"
"""CircuitsVis's JavaScript, inside its package."""

ELEMENTS = {
    "AttentionHeads": "text",
    "AttentionPattern": "text",
    "ColoredTokens": "html",
    "ColoredTokensMulti": "html",
}
"""Components, and what they take tokens for: HTML would be run, so it is escaped."""

STYLE = """
body { font-family: system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem;
  padding: 0 1rem; color: #1a1a1a; background: #fff; }
figure { margin: 0 0 2rem; }
figcaption { margin: 0 0 .5rem; }
h1 { font-size: 1.3rem; }
"""


@dataclass(frozen=True, eq=False, repr=False)
class Widget(Part):
    """One CircuitsVis element with its properties.

    Shown in a notebook, the first widget brings CircuitsVis's JavaScript (1.3 MB) and
    the later ones use it. Run that cell again and it brings it again. A notebook that
    is reloaded without that cell's output shows a line that says so in the place of the
    others: run any cell with a widget after `restart_sharing()`. In Colab, where every
    output is a page of its own, each widget brings its own copy.

    Attributes:
        element: The React component: `AttentionHeads`, `AttentionPattern`,
            `ColoredTokens` or `ColoredTokensMulti`.
        properties: What it is given; text, numbers and lists.
        caption: What it shows.
        thumbnails: Images that stand before tokens, by the token's number. Coloured
            tokens alone can show them.

    Raises:
        SettingsError: If it is another component: what it does with text that looks
            like HTML was not looked at.
    """

    element: str
    properties: dict[str, Any]
    caption: str = ""
    thumbnails: dict[int, Image.Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("element", self.element, list(ELEMENTS))
        check_mapping("properties", self.properties)
        check_text("caption", self.caption, error=SettingsError)
        try:
            _write_script(self.properties)
        except (TypeError, ValueError) as error:
            msg = f"properties must be what JSON holds, without NaN: {error}"
            raise SettingsError(msg) from error

    def _about(self) -> str:
        n_tokens = len(self.properties.get("tokens", ()))
        return f"{self.element} of {n_tokens} tokens. {self.caption}"

    def frame(self) -> pd.DataFrame:
        """List what the widget shows.

        Returns:
            Of patterns, columns `name query token value`: a head, the tokens that
            attend and are read, and the weight. Of coloured tokens, `name token
            value`: the button's label, empty where there is none.
        """
        given, tokens = self.properties, list(self.properties.get("tokens", ()))
        if "attention" in given:
            whole = np.asarray(given["attention"], dtype=float)
            whole = whole.reshape(-1, len(tokens), len(tokens))
            names = given.get("attentionHeadNames") or [""] * len(whole)
            n_heads, n = len(whole), len(tokens)
            head, row, column = np.indices((n_heads, n, n)).reshape(3, -1)
            listed = {
                "name": [names[one] for one in head],
                "query": [tokens[one] for one in row],
                "token": [tokens[one] for one in column],
            }
            return pd.DataFrame(listed | {"value": whole.flatten()})
        values = np.asarray(given.get("values", ()), dtype=float)
        values = values.reshape(len(tokens), -1)
        labels = list(given.get("labels") or [""] * values.shape[1])
        return pd.DataFrame(
            {
                "name": [label for label in labels for _ in tokens],
                "token": tokens * len(labels),
                "value": values.T.flatten(),
            }
        )

    def fragment(self) -> str:
        """Write the widget as HTML that finds the JavaScript in its page.

        It waits until the JavaScript is there, and says so where it does not come.
        """
        name = f"eah-circuits-{uuid4().hex[:12]}"
        caption = html.escape(self.caption)
        element = _write_script(self.element)
        properties = dict(self.properties)
        if ELEMENTS[self.element] == "html":
            tokens = [html.escape(token, quote=False) for token in properties["tokens"]]
            properties["tokens"] = write_labels(tokens, self.thumbnails)
        return (
            f'<figure><figcaption>{caption}</figcaption><div id="{name}"></div>'
            f"</figure><script>(function () {{ var tries = 0; function draw() {{ "
            f'var place = document.getElementById("{name}"); '
            "if (place && window.CircuitsVis) { "
            f'window.CircuitsVis.render("{name}", window.CircuitsVis[{element}], '
            f"{_write_script(properties)}); return; }} "
            "if (place && tries === 30) { place.textContent = "
            f"{_write_script(MISSING)}; }} "
            "tries += 1; if (tries < 3000) { setTimeout(draw, 100); } } draw(); "
            "})();</script>"
        )

    def _repr_html_(self) -> str:
        """Show the widget in a notebook, with the JavaScript if it must bring it."""
        script = f"<script>{read_bundle()}</script>" if _SHARING.must_bring() else ""
        return script + self.fragment()

    def save(self, path: str | Path) -> Path:
        """Write the widget as a page that needs no network and no other file.

        Raises:
            SettingsError: If it cannot be written.
            ExtraMissingError: If circuitsvis is not installed.
        """
        return save_page([self], path, title=self.caption or self.element)


MISSING = (
    "The JavaScript of CircuitsVis is not on this page: run the cell that showed the "
    "first widget again, or eah_interp.viz.restart_sharing() and then this cell."
)


def share_page(widgets: Sequence[Widget], *, title: str = "CircuitsVis") -> str:
    """Write widgets as one page, with one copy of the JavaScript and no network.

    Args:
        widgets: At least one.
        title: The page's heading.

    Returns:
        A whole HTML page.

    Raises:
        SettingsError: If there is no widget.
        ExtraMissingError: If circuitsvis is not installed.
    """
    listed = to_list(widgets)
    if listed is None or not all(isinstance(widget, Widget) for widget in listed):
        got = show_value(widgets)
        raise SettingsError(f"widgets must be a list of Widgets, got {got}")
    check_text("title", title, error=SettingsError)
    if not listed:
        msg = "there is nothing to show: expected at least one widget, got none"
        raise SettingsError(msg)
    heading = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{heading}</title><style>{STYLE}</style>"
        f'<link rel="icon" href="data:,"><script>{read_bundle()}</script></head>'
        f"<body><h1>{heading}</h1>{''.join(w.fragment() for w in widgets)}"
        "</body></html>"
    )


@by_name
def save_page(
    widgets: Sequence[Widget], path: str | Path, *, title: str = "CircuitsVis"
) -> Path:
    """Write `share_page` to a file, whole or not at all.

    Raises:
        SettingsError: If there is no widget, or the file cannot be written.
        ExtraMissingError: If circuitsvis is not installed.
    """
    path = check_path("path", path, error=SettingsError)
    content = share_page(widgets, title=title).encode(errors="backslashreplace")
    make_folder(path.parent)
    save_bytes(content, path)
    return path


@cache
def read_bundle() -> str:
    """Read CircuitsVis's JavaScript from its package, ready for a script element.

    The package itself is not imported, so nothing of it runs. It leaves the name
    `CircuitsVis` on the page, once, however often it is run.

    Raises:
        ExtraMissingError: If circuitsvis is not installed.
    """
    package = find_spec("circuitsvis")
    places = [] if package is None else list(package.submodule_search_locations or ())
    files = [Path(place) / BUNDLE for place in places]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        msg = "CircuitsVis widgets need circuitsvis: pip install 'eah-interp[viz]'"
        raise ExtraMissingError(msg)
    source = found.read_text(encoding="utf-8")
    lines = source.rstrip().splitlines()
    kept = [line for line in lines if not line.startswith("//# sourceMappingURL")]
    source = "\n".join(kept).replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return (
        "window.CircuitsVis = window.CircuitsVis || (function () {"
        f"{source}\nreturn CircuitsVis; }})();"
    )


@by_name
def restart_sharing() -> None:
    """Let the next widget that is shown bring the JavaScript again."""
    _SHARING.cell = _SHARING.run = None


def write_labels(
    tokens: Sequence[str], thumbnails: Mapping[int, Image.Image]
) -> list[str]:
    """Write tokens as HTML, some as images, without a space inside a tag.

    CircuitsVis turns every space of a token into a hard one; a slash parts attributes
    too.

    Args:
        tokens: HTML of each token, escaped.
        thumbnails: Images that stand before a token, by its number.
    """
    labels = list(tokens)
    for number, image in thumbnails.items():
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        labels[number] = (
            f'<img/src="data:image/png;base64,{data}"/height="{image.height}"/alt=""'
            f'/style="vertical-align:middle">{tokens[number]}'
        )
    return labels


def _write_script(value: Any) -> str:
    """Write a value as JavaScript that no text in it can end or leave."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@dataclass
class _Sharing:
    """Which cell of this kernel's notebook has brought the JavaScript.

    Attributes:
        cell: The cell: its name, or its code where the front end names none.
        run: Which run of a cell that was.
    """

    cell: str | None = None
    run: str | None = None
    apart: tuple[str, ...] = field(default=("google.colab",))

    def must_bring(self) -> bool:
        """Whether what is shown now must bring the JavaScript."""
        if any(name in sys.modules for name in self.apart):
            return True
        cell, run = _find_cell()
        again = bool(cell) and cell == self.cell and run != self.run
        if self.cell is not None and not again:
            return False
        self.cell, self.run = cell, run
        return True


_SHARING = _Sharing()


def _find_cell() -> tuple[str, str]:
    """Return which cell runs, and which of its runs it is; empty outside a kernel."""
    from_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if from_ipython is None else from_ipython()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)() or {}
    code = parent.get("content", {}).get("code", "")
    cell = str(parent.get("metadata", {}).get("cellId") or code)
    return cell, str(parent.get("header", {}).get("msg_id", ""))
