"""One inspection of the toy, its page, and a page that tries to break out."""

import pytest

import eah_interp as eah
from eah_interp.report import inspect_image, write_report
from eah_interp.report.inspect import inspect_subject
from eah_interp.report.subjects import choose_subject
from tests.studies.made import caption, make_run, patch, question

SCRIPT = "<script>alert(1)</script>"
BOLD = "<b>x"


@pytest.fixture(scope="session")
def toy():
    return eah.load()


@pytest.fixture(scope="session")
def found(toy):
    return inspect_subject(
        toy, choose_subject(), eah=eah.EAH(layers=(0, 1)), max_new_tokens=4
    )


@pytest.fixture(scope="session")
def page(found, tmp_path_factory):
    return write_report(found, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def evil(toy, tmp_path_factory):
    """Return a wide picture's page, whose question and object are HTML."""
    from eah_interp.testing import random_image

    found = inspect_image(
        toy,
        random_image(3, width=300, height=120),
        SCRIPT,
        objects=[BOLD, "boat"],
        title='<img src=x onerror="alert(2)">',
        caption=False,
        max_new_tokens=2,
        command=f"eah-interp report '{SCRIPT}'",
    )
    return write_report(found, tmp_path_factory.mktemp("evil") / "evil.html")


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Return a study's page, whose prompts and answers are HTML."""
    from eah_interp.benchmarks.paired import Draws
    from eah_interp.studies import report

    folder = tmp_path_factory.mktemp("study")
    asked = [
        question(f"q{i}", label=i % 2 == 0, cluster=i, prompt=f"Is there {SCRIPT}?")
        for i in range(12)
    ]
    told = [caption(f"c{i}", truth=("boat",), cluster=i) for i in range(12)]
    said = [f"Yes {BOLD}" if i % 3 else "No" for i in range(12)]
    answers = {
        "baseline": said + ["a boat and a fish"] * 12,
        "EAH": ["No"] * 12 + ["a boat"] * 12,
        SCRIPT: said[::-1] + ["nothing"] * 12,
    }
    run = make_run(folder / "run", [*asked, *told], answers, patches={"EAH": patch()})
    return report(run, folder / "study.html", draws=Draws(resamples=100))
