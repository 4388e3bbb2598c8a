"""The page of citations, made from CITATION.cff."""

import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "CITATION.cff"
MARKED = re.compile(
    "(<!-- from CITATION.cff -->\n).*?(\n<!-- /from CITATION.cff -->)", re.DOTALL
)
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
        >>> paper["authors"] = [{"family-names": "Lee", "given-names": "Ann"}]
        >>> number = {"type": "other", "value": "arXiv:2401.00001"}
        >>> paper |= {"identifiers": [number], "start": 3, "end": 9}
        >>> print(write_entry(paper))
        @article{lee2024on,
          title = {On heads},
          author = {Lee, Ann},
          year = {2024},
          pages = {3--9},
          eprint = {2401.00001},
          archivePrefix = {arXiv},
        }
    """
    authors = [_name(author) for author in entry["authors"]]
    eprint = _find_eprint(entry)
    fields = {
        "title": entry["title"],
        "author": " and ".join(authors),
        "year": entry.get("year") or str(entry.get("date-released", ""))[:4],
        "version": entry.get("version"),
        "journal": entry.get("journal"),
        "booktitle": entry.get("collection-title"),
        "pages": f"{entry['start']}--{entry['end']}" if entry.get("end") else "",
        "publisher": entry.get("publisher", {}).get("name"),
        "doi": entry.get("doi"),
        "eprint": eprint,
        "archivePrefix": "arXiv" if eprint else "",
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
    if "name" not in author:
        return f"{author['family-names']}, {author['given-names']}"
    name = author["name"].replace(" et al.", " and others")
    # BibTeX would take the last word of a group's name for a family's.
    return name if name.endswith(" others") else f"{{{name}}}"


def _find_eprint(entry: dict[str, Any]) -> str:
    """Find a work's number on arXiv, which the file has as an identifier."""
    values = [str(one["value"]) for one in entry.get("identifiers", ())]
    numbers = [value.removeprefix("arXiv:") for value in values if "arXiv:" in value]
    return "".join(numbers[:1])


def fill_page(_app: Any, _page: str, content: list[str]) -> None:
    """Put the entries where a page has them: between two marks."""
    if MARKED.search(content[0]):
        entries = describe_citation()
        content[0] = MARKED.sub(lambda m: f"{m[1]}\n{entries}\n{m[2]}", content[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
