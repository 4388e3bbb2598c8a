"""Reads a page as a reader does: headings, tables, links."""

import re
from html.parser import HTMLParser

VOID = frozenset({"meta", "img", "br", "link", "input"})


class Page(HTMLParser):
    """Tags in order and whether they close, tables by caption, all text.

    A table is a list of rows, and a row a list of its cells' text, header first.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.text = [], [], [], ""
        self.headings = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append(["", []])
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append([int(tag[1]), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"style", "title"} & set(self.open):
            return
        self.text += data
        if self.headings and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1][1] += data
        if "caption" in self.open:
            self.tables[-1][0] += data
        elif {"td", "th"} & set(self.open):
            self.tables[-1][1][-1][-1] += data

    def table(self, caption):
        """Return the rows of the one table whose caption begins so."""
        (rows,) = [rows for name, rows in self.tables if name.startswith(caption)]
        return rows

    def all_tables(self, caption):
        return [rows for name, rows in self.tables if name.startswith(caption)]


def numbers(row):
    """Read a row's cells as numbers, stars left out."""
    return [float(re.sub(r"[*%]", "", cell)) for cell in row]
