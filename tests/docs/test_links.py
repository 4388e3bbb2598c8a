"""Links of the README and of the docs lead somewhere."""

import re
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import FENCE, ROOT, find_pages, name_of

PAGES = {name_of(page): page for page in find_pages()}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+(?:\([^()\s]*\))?)\)")


def find_links(text):
    """Return (is_picture, words, address) of each link outside of code."""
    prose = re.sub(r"(`+)(?:(?!\1).)+\1", "code", FENCE.sub("", text))
    return [(bool(m[1]), m[2], m[3]) for m in LINK.finditer(prose)]


def slugs_of(text):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_repository_lead_to_files_and_headings(name):
    page = PAGES[name]
    for _, _, address in find_links(page.read_text()):
        parts = urlsplit(address)
        if parts.scheme:
            continue
        target = page.parent / parts.path if parts.path else page
        if "tutorials/" in parts.path and page.is_relative_to(ROOT / "docs"):
            target = ROOT / "tutorials" / target.name  # a copy, made by the build
        assert target.exists(), f"{name} links to {address}"
        if parts.fragment:
            found = slugs_of(target.read_text())
            assert parts.fragment in found, f"{name} links to {address}"


@pytest.mark.parametrize("name", PAGES)
def test_links_elsewhere_are_encrypted_and_pictures_are_described(name):
    for is_picture, words, address in find_links(PAGES[name].read_text()):
        parts = urlsplit(address)
        assert parts.scheme in ("", "https"), f"{name} links to {address}"
        assert not is_picture or (words and not parts.scheme), f"{name}: {address}"


def test_links_are_found_outside_of_code_only():
    text = "[a](b.md#c) `[no](x.md)` ![p](q.png)\n```text\n[no](y.md)\n```\n"
    assert find_links(text) == [(False, "a", "b.md#c"), (True, "p", "q.png")]
    assert slugs_of("# One, `two`: 3\n## A-b") == {"one-two-3", "a-b"}


def test_every_page_of_the_docs_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    api = (ROOT / "docs" / "api" / "index.md").read_text()
    listed = {"index", *re.findall(r"^[\w\-/]+$", index, re.MULTILINE)}
    listed |= {f"api/{name}" for name in re.findall(r"^\w+$", api, re.MULTILINE)}
    pages = {n.removeprefix("docs/").removesuffix(".md") for n in PAGES if "docs/" in n}
    assert pages - listed == set()
