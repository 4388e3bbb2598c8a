"""What is published: two distributions, an index page, a workflow for forks."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import eah_interp as eah
from eah_interp.errors import ExtraMissingError
from eah_interp.toy import TOYS, toy_path
from tests.docs.test_links import find_links

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
WORKFLOW = ROOT / ".github/workflows/test.yml"


def run(*words, cwd=ROOT, **variables):
    """Run a program; its output, or an assertion that shows its errors."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- toys ----------------------------------------------------------------------------


def test_only_the_first_toy_lies_in_the_package():
    own = ROOT / "eah_interp/toy/weights"
    assert [path.name for path in own.iterdir()] == [TOYS[0]]
    for name in TOYS[1:]:
        assert toy_path(name).parent.name == "eah_interp_toys"
        assert (toy_path(name) / "model.safetensors").is_file()


@pytest.fixture
def alone(monkeypatch):
    """Let the distribution of the other toys not be installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)


def test_a_toy_that_is_not_installed_is_refused_with_the_command(alone):
    assert eah.load().n_layers == 8
    for name in TOYS[1:]:
        with pytest.raises(ExtraMissingError, match=r"pip install \./toys"):
            eah.load(f"toy:{name}")


# -- names, addresses, versions ------------------------------------------------------


def test_the_address_and_the_version_are_the_same_everywhere():
    toys = tomllib.loads((ROOT / "toys/pyproject.toml").read_text())["project"]
    assert toys["urls"]["Repository"] == ADDRESS
    for page in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        found = re.findall(r"https://github\.com/[\w-]+/[\w-]+", page.read_text())
        assert set(found) <= {ADDRESS}, page.name
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]


def test_the_pythons_of_the_metadata_are_those_of_the_readme_and_the_workflow():
    listed = {
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    }
    assert listed == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == f">={min(listed)}"
    assert all(name in (ROOT / "README.md").read_text() for name in listed)
    run_on = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["strategy"]
    assert {min(listed), max(listed)} == set(run_on["matrix"]["python"])


def test_every_line_that_the_workflow_runs_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    lines = [
        line
        for job in jobs.values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]
    assert len(lines) >= 2
    for line in lines:
        program, target, *settings = line.split()
        assert program == "make"
        assert target in targets
        assert all(re.fullmatch(r"[A-Z]+=[\w.]+", setting) for setting in settings)


@pytest.mark.parametrize(
    "page",
    sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")),
    ids=lambda p: p.stem,
)
def test_issue_forms_ask_for_the_version_and_the_model(page):
    form = yaml.safe_load(page.read_text())
    if page.stem == "config":
        assert form["contact_links"]
        return
    assert {"name", "description", "body"} <= set(form)
    asked = {part["id"]: part["attributes"] for part in form["body"]}
    assert "`eah-interp --version`" in asked["version"]["label"]
    assert "model" in asked["model"]["label"].lower()


# -- the command line, however it is started -----------------------------------------


def test_the_package_runs_as_a_module(tmp_path):
    words = (sys.executable, "-m", "eah_interp")
    found = run(*words, "--version", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert found == f"eah-interp {eah.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell, tmp_path):
    program = "from eah_interp.cli import app; app(prog_name='eah-interp')"
    script = run(
        *(sys.executable, "-c", program, "--show-completion", shell),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert "eah-interp" in script
    found = run(
        *(sys.executable, "-c", program),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
        _EAH_INTERP_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_ARGS="eah-interp st",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        COMP_WORDS="eah-interp st",
        COMP_CWORD="1",
    )
    assert "study" in found


# -- as built (needs pip's network for the build's own packages) ----------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both distributions, built as `make dist` builds them, from the sdist on."""
    out = tmp_path_factory.mktemp("dist")
    tools = out / "tools"
    venv.create(tools, with_pip=True)
    python = tools / "bin/python"
    quiet = ("--quiet", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *quiet, "build")
    for folder in (ROOT, ROOT / "toys"):
        run(python, "-m", "build", "--outdir", out, folder)
    return out


@pytest.mark.slow
def test_the_wheel_has_one_toy_and_the_sdist_everything(built):
    (wheel,) = built.glob("eah_interp-*.whl")
    assert wheel.stat().st_size < 4.5e6
    names = zipfile.ZipFile(wheel).namelist()
    weights = [name for name in names if name.endswith(".safetensors")]
    assert weights == ["eah_interp/toy/weights/seed-0/model.safetensors"]
    assert {name.split("/")[0] for name in names} == {
        "eah_interp",
        f"eah_interp-{PROJECT['version']}.dist-info",
    }
    (toys,) = built.glob("eah_interp_toys-*.whl")
    weights = [
        name for name in zipfile.ZipFile(toys).namelist() if name.endswith("tensors")
    ]
    assert len(weights) == 3
    (source,) = built.glob("eah_interp-*.tar.gz")
    with tarfile.open(source) as archive:
        listed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "LICENSE")
    assert set(wanted) <= listed
    assert "constraints.txt" in listed
    for folder in ("tutorials", "tests", "docs", "toys", ".ci", ".github"):
        kept = {
            str(path.relative_to(ROOT))
            for path in map(ROOT.joinpath, run("git", "ls-files", folder).splitlines())
        }
        assert kept <= listed, kept - listed


@pytest.mark.slow
def test_the_page_on_an_index_has_links_that_lead_somewhere(built):
    (wheel,) = built.glob("eah_interp-*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert urls == PROJECT["urls"]
    page = metadata.get_payload()
    links = find_links(page)
    assert len(links) > 15
    tag = f"v{PROJECT['version']}/"
    for is_picture, words, address in links:
        assert address.startswith("https://"), (words, address)
        if tag in address:
            assert (ROOT / address.partition(tag)[2].partition("#")[0]).exists()
            assert ("raw.githubusercontent.com" in address) == is_picture
    originals = find_links((ROOT / "README.md").read_text())
    assert len(originals) == len(links)


@pytest.mark.slow
def test_the_wheel_alone_runs_with_no_repository_beside_it(built, tmp_path):
    """In an environment that borrows every package but this one."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (wheel,) = built.glob("eah_interp-*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # Appended last: the wheel's own package is found first.
    borrowed = Path(pytest.__file__).parents[1]
    hook = f"import sys; sys.path.append({str(borrowed)!r})\n"
    (site / "borrowed.pth").write_text(hook)
    program = "import eah_interp; print(eah_interp.__file__)"
    assert run(python, "-c", program, cwd=tmp_path).startswith(str(site))
    found = run(python, "-m", "eah_interp", "--version", cwd=tmp_path)
    assert found == f"eah-interp {PROJECT['version']}\n"
    found = run(python, "-m", "eah_interp", "toy", "--json", cwd=tmp_path)
    assert '"command": "toy"' in found
