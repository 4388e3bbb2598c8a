"""The support table says what the tests found, of every family."""

import sys
from pathlib import Path

import pytest

from eah_interp.lvlm.loading import TESTED
from eah_interp.testing import FAMILIES
from eah_interp.testing.support import read_support

DOCS = Path(__file__).parents[1] / "docs"
SUPPORTED = [name for name, family in FAMILIES.items() if not family.refused]
EAGER_ONLY = {"paligemma2", "got_ocr2", "inkling2", "internvl_gpt_oss"}


@pytest.fixture(scope="module", autouse=True)
def script_on_the_path():
    """The table is made by a script."""
    sys.path.insert(0, str(DOCS / "support"))
    yield
    sys.path.remove(str(DOCS / "support"))


def test_every_supported_family_was_found_exact():
    families = read_support()["families"]
    assert list(families) == SUPPORTED
    for name, results in families.items():
        assert results["eager"] == "exact"
        assert results.get("sdpa", "eager only") == (
            "eager only" if name in EAGER_ONLY else "exact"
        )
        assert results.get("transformer_lens", "exact") == "exact"
    bridged = [name for name, ways in families.items() if "transformer_lens" in ways]
    assert len(bridged) >= 16


def test_the_page_is_written_from_the_results():
    from support_table import write_page

    assert (DOCS / "models.md").read_text() == write_page(read_support())


def test_the_table_is_of_the_versions_that_errors_name():
    versions = read_support()["versions"]
    for name, (_, newest) in TESTED.items():
        assert versions[name] == newest


def test_failures_and_skips_are_read_as_what_they_are(tmp_path):
    from support_table import read_report

    cases = {
        "test_a[llava-eager]": "",
        "test_a[llava-sdpa]": "<failure/>",
        "test_b[qwen3_vl]": "<skipped/>",
        "test_b[aria]": "",
        "test_c[other-eager]": "",
        "test_d": "<error/>",
    }
    xml = "".join(
        f'<testcase name="{n}">{child}</testcase>' for n, child in cases.items()
    )
    (tmp_path / "report.xml").write_text(f"<testsuite>{xml}</testsuite>")
    assert read_report(tmp_path / "report.xml") == {
        "llava": {"eager": "exact", "sdpa": "fails"},
        "qwen3_vl": {"transformer_lens": "untested"},
        "aria": {"transformer_lens": "exact"},
    }
