"""The code of the page's documentation runs as it stands, in order."""

import re

from eah_interp.report.explaining import MOST_OBJECTS


def test_the_code_of_the_report_page_runs(pytestconfig, tmp_path):
    text = (pytestconfig.rootpath / "docs" / "report.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "report.py"
    script.write_text("\n".join(blocks))
    scope = {"__name__": "report", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    found, page = scope["found"], scope["page"]
    assert page.stat().st_size > 10_000
    assert found.remarks == ()
    assert list(found.donors.items()) == [(1, 3)]
    assert set(found.asked[0].margins) == {
        "plain",
        "EAH",
        "sparsest",
        "random",
        "shuffled",
    }
    assert "# {1: 3}" in text
    assert f"At most {MOST_OBJECTS} objects are split by heads" in text
