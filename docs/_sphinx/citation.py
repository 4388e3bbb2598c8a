"""The page of citations, made from CITATION.cff."""

import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "CITATION.cff"
MARK = "<!-- from CITATION.cff -->"
KINDS = {"article": "article", "conference-paper": "inproceedings", "software": "misc"}


def describe_citation() -> str:
    """Write the software and its references as BibTeX.

    Returns:
        Markdown: the message, and a block.
    """
    import yaml

    record = yaml.safe_load(FILE.read_text())
    entries = [record, *record["references"]]
    return "```bibtex\n" + "\n\n".join(map(write_entry, entries)) + "\n```"


def write_entry(entry: dict[str, Any]) -> str:
    """Write one entry.

    Example:
        >>> paper = {"type": "article", "title": "On heads", "year": 2024}
        >>> print(write_entry({**paper, "authors": [{"name": "Lee et al."}]}))
        @article{lee2024on,
          title = {On heads},
          author = {Lee and others},
          year = {2024},
        }
    """
    authors = [_name(author) for author in entry["authors"]]
    conference = entry.get("conference")
    if isinstance(conference, dict):
        conference = conference["name"]
    fields = {
        "title": entry["title"],
        "author": " and ".join(authors),
        "year": entry.get("year") or str(entry.get("date-released", ""))[:4],
        "version": entry.get("version"),
        "journal": entry.get("journal"),
        "booktitle": conference,
        "url": entry.get("url") or entry.get("repository-code"),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    who, what = (
        re.findall(r"[a-z]\w+", text.lower()) for text in (authors[0], entry["title"])
    )
    key = f"{who[0]}{fields['year']}{what[0]}" if entry.get("year") else what[0]
    head = f"@{KINDS[entry['type']]}{{{key},"
    return "\n".join([head, *lines, "}"])


def _name(author: dict[str, Any]) -> str:
    given = " ".join(
        filter(None, [author.get("given-names"), author.get("family-names")])
    )
    return str(author.get("name") or given).replace(" et al.", " and others")


def fill_page(_app: Any, _page: str, content: list[str]) -> None:
    """Put the entries where a page asks for them."""
    if MARK in content[0]:
        content[0] = content[0].replace(MARK, describe_citation())


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
