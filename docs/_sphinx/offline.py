"""No page of the built site loads anything from elsewhere; links there are listed."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOADS = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        address = found.get(LOADS.get(tag, ""), "")
        if tag == "link" and found.get("rel", "") not in {"canonical", "search"}:
            address = found.get("href", "")
        if is_elsewhere(address):
            self.loaded.append(address)
        if tag == "a" and is_elsewhere(found.get("href", "")):
            self.linked.append(found["href"])


def is_elsewhere(address: str) -> bool:
    """Tell whether an address asks a network: `https://...`, `//host/...`.

    Example:
        >>> is_elsewhere("//cdn.example/x.js"), is_elsewhere("_static/x.js")
        (True, False)
    """
    return address.strip().lower().startswith(("http:", "https:", "//"))


def read_references(page: str) -> tuple[list[str], list[str]]:
    """Find what an HTML page loads from elsewhere, and what it links to there.

    Example:
        >>> read_references('<script src="https://a.b/c.js"></script>')
        (['https://a.b/c.js'], [])
    """
    references = _References()
    references.feed(page)
    return references.loaded, references.linked


def check_site(folder: Path) -> list[str]:
    """Check every page and stylesheet of a built site, and list its outside links.

    Args:
        folder: The built site. Gets `external-links.txt`.

    Returns:
        What is wrong, a line for each address that would be loaded.
    """
    wrong: list[str] = []
    links: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.html")):
        loaded, linked = read_references(path.read_text())
        name = path.relative_to(folder)
        wrong += [f"{name} loads {address}" for address in loaded]
        for address in linked:
            links.setdefault(address, []).append(str(name))
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text().replace('"', "").replace("'", "").replace(" ", "")
        for mark in ("url(http", "url(//", "@importhttp", "@import//"):
            if mark in text:
                wrong.append(f"{path.relative_to(folder)} has {mark}")
    lines = [
        f"{address} {pages[0]}"
        + (f" and {len(pages) - 1} more\n" if pages[1:] else "\n")
        for address, pages in sorted(links.items())
    ]
    (folder / "external-links.txt").write_text("".join(lines))
    return wrong


def on_finish(app: Any, error: Exception | None) -> None:
    """Fail a build whose pages would load something from elsewhere."""
    from sphinx.errors import ExtensionError

    if error is None and app.builder.format == "html":
        wrong = check_site(Path(app.outdir))
        if wrong:
            raise ExtensionError("\n".join(wrong))


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("build-finished", on_finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
