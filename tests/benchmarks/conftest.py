"""What tests of the benchmarks share: files to read, and NLTK's data."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a file of JSON lines, or of text, and return its path."""

    def write(name, content):
        path = tmp_path / name
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture
def nltk_data(reference_data, monkeypatch):
    """Let NLTK find the reference data's own copy of what CHAIR needs."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(reference_data / "nltk_data")])
