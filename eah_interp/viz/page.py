"""Pages of HTML that need no network, no script and no other file."""

import base64
import io
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image

from eah_interp.tables import Table
from eah_interp.viz.figures import write_svg
from eah_interp.viz.overlays import LEAST_SIDE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("page.html.jinja", "page_parts.html.jinja", "page.css.jinja")
"""The frame of a page, its figures, and its style sheet."""

LARGEST_SIDE = 1024
"""Images are shrunk to this many pixels before they go into a page."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure inside a page.

    Attributes:
        source: The figure itself, as a data URI.
        text: What it shows, for those who see it and those who do not.
        tables: The numbers it was drawn from, shown under it on demand.
        wide: Whether it needs the width of the page.
    """

    source: str
    text: str
    tables: tuple[Table, ...] = ()
    wide: bool = False


def embed_figure(figure: "Figure") -> str:
    """Turn a figure into a data URI.

    Example:
        >>> from eah_interp.viz.figures import make_figure
        >>> embed_figure(make_figure(height=1.0))[:26]
        'data:image/svg+xml;base64,'
    """
    return _as_uri("svg+xml", write_svg(figure))


def embed_photo(figure: "Figure") -> str:
    """Turn a figure that is made of images into a data URI, small whatever they hold.

    Example:
        >>> from eah_interp.viz.figures import make_figure
        >>> embed_photo(make_figure(height=1.0))[:23]
        'data:image/jpeg;base64,'
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="jpeg",
        bbox_inches="tight",
        pad_inches=0.05,
        pil_kwargs={"quality": 88},
    )
    return _as_uri("jpeg", buffer.getvalue())


def embed_image(image: Image.Image) -> str:
    """Turn an image into a data URI: small ones with sharp pixels, large as JPEG.

    Example:
        >>> embed_image(Image.new("RGB", (8, 8)))[:22]
        'data:image/png;base64,'
    """
    image = shrink(image.convert("RGB"))
    factor = LEAST_SIDE // max(image.size)
    if factor > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.NEAREST)
    kind = "png" if factor > 1 else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=88)
    return _as_uri(kind, buffer.getvalue())


def shrink(image: Image.Image) -> Image.Image:
    """Make an image no larger than a page needs it; small ones stay as they are.

    Example:
        >>> shrink(Image.new("RGB", (4096, 1024))).size
        (1024, 256)
    """
    copy = image.copy()
    copy.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return copy


def render_page(template: str, **values: Any) -> str:
    """Lay out a page; whatever the values hold is shown as text.

    Args:
        template: A jinja2 template that extends `page.html.jinja` and fills its blocks
            `title`, `heading`, `contents` and `main`; `page_parts.html.jinja` has the
            macro for figures. A `Table` is shown as it writes itself in HTML.
        **values: What the template names.

    Returns:
        The page.

    Example:
        >>> frame = '{% extends "page.html.jinja" %}{% block title %}{{ name }}'
        >>> page = render_page(frame + "{% endblock %}", name="<b>")
        >>> "<title>&lt;b&gt;</title>" in page
        True
    """
    import jinja2

    folder = files("eah_interp.viz")
    sources = {name: folder.joinpath(name).read_text("utf-8") for name in PARTS}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = lambda value: json.dumps(
        value, indent=1, ensure_ascii=False
    )
    return environment.from_string(template).render(**values)


def _as_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
