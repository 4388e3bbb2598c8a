"""Claims about `eah-interp study`: files of the docs run, and users are told."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from eah_interp.cli import app
from eah_interp.studies import StudyRun
from tests.studies.common import SHORT

SMALL = """\
items: {source: toy, n_scenes: 1, samplings: [random]}
conditions: [baseline, {kind: eah, layers: [2]}]
batch_size: 2
decoding: """ + json.dumps(SHORT)


def invoke(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.fixture
def docs(pytestconfig):
    return pytestconfig.rootpath / "docs"


@pytest.fixture
def small(tmp_path, toy, monkeypatch):
    monkeypatch.setattr("eah_interp.studies.manifest.ModelSource.load", lambda _: toy)
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def test_the_study_file_of_the_docs_runs_as_it_stands(docs, tmp_path):
    page = (docs / "studies.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = docs / "studies" / "first.yaml"
    assert yaml.safe_load(shown) == yaml.safe_load(file.read_text())
    result = invoke("run", file, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "112 of 112 rows" in " ".join(result.stdout.split())
    run = StudyRun.load(tmp_path)
    assert run.is_complete
    assert run.conditions == (
        "baseline",
        "EAH at L2 (counted from 0)",
        "EAH layers=0",
        "EAH layers=1",
    )
    assert run.frame().error.isna().all()


def test_the_larger_example_is_a_study_but_for_its_data(docs, tmp_path):
    text = (docs / "studies" / "llava.yaml").read_text()
    file = tmp_path / "llava.yaml"
    line = '{"question_id": 1, "image": "a.jpg", "text": "Dog?", "label": "no"}'
    (tmp_path / "pope").mkdir()
    (tmp_path / "val2014").mkdir()
    for kind in ("random", "adversarial"):
        (tmp_path / "pope" / f"coco_pope_{kind}.json").write_text(line)
    (tmp_path / "val2014" / "a.jpg").write_bytes(b"")
    file.write_text(text)
    record = json.loads(invoke("check", file, "--json").stdout)
    assert record["tasks"] == {"yes_no": 2, "caption": 1}
    assert len(record["conditions"]) == 7 + 2 + 8


def test_check_says_what_would_run(small):
    told = invoke("check", small).stdout
    assert "3 items (2 yes_no, 1 caption) in 2 batches" in told
    assert "2 conditions: baseline, EAH" in told
    assert "6 rows" in told
    small.write_text(SMALL.replace("n_scenes: 1", "n_scenes: 0"))
    refused = invoke("check", small)
    assert refused.exit_code == 2
    assert "small.yaml:1: items.n_scenes" in refused.stderr


def test_status_counts_rows_and_lists_errors(small, tmp_path, monkeypatch):
    from eah_interp.studies import work

    real = work.open_image
    seen = []

    def read(image):
        seen.append(image)
        if len(seen) == 1:
            msg = "a broken image"
            raise ValueError(msg)
        return real(image)

    with monkeypatch.context() as patch:
        patch.setattr(work, "open_image", read)
        told = invoke("run", small, "--out", tmp_path / "out", "--shard", "1/2")
    assert told.exit_code == 0, told.output
    words = " ".join(told.stdout.split())  # lines break where the terminal ends
    assert "4 of 6 rows" in words
    assert "1 x ValueError: a broken image (0/random/yes under" in words
    record = json.loads(invoke("status", tmp_path / "out", "--json").stdout)
    assert (record["n_rows"], record["n_wanted"], record["n_failed"]) == (4, 6, 1)
    again = invoke("run", small, "--out", tmp_path / "out", "--retry-failed")
    assert "6 of 6 rows" in " ".join(again.stdout.split())
    assert "error" not in again.stdout


def test_ctrl_c_prints_the_command_that_goes_on(small, tmp_path, monkeypatch):
    from eah_interp.studies import runner

    def stop(self):
        self.asked = True
        real(self)

    real = runner.Stop.check
    monkeypatch.setattr(runner.Stop, "check", stop)
    out = tmp_path / "out"
    stopped = invoke("run", small, "--out", out, "--shard", "1/2")
    assert stopped.exit_code == 130
    assert f"eah-interp study run {small} --out {out} --shard 1/2" in stopped.stderr


def test_a_folder_without_a_study_is_refused(tmp_path):
    refused = invoke("status", tmp_path)
    assert refused.exit_code == 2
    assert "is no study" in refused.stderr


@pytest.mark.parametrize("command", ["run", "status", "check"])
def test_help_teaches_by_example(command):
    told = invoke(command, "--help").stdout
    assert f"eah-interp study {command}" in told
