"""Claims about a checkpoint's own code: it runs where asked for, and nobody is asked.

Every folder here holds code that writes a file when it runs, and every input says y.
"""

import builtins
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from PIL import Image
from transformers import dynamic_module_utils

import eah_interp as eah
from eah_interp.errors import ModelError, SettingsError
from eah_interp.lvlm.foreign_code import never_asking
from eah_interp.lvlm.model import LVLM
from eah_interp.studies import ModelSource, StudyFile
from eah_interp.studies.engine_ray import Worker
from eah_interp.studies.manifest import Manifest
from eah_interp.toy import draw_scene, toy_path

CODE = """\
from pathlib import Path

Path({canary!r}).write_text("ran")
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)


class OwnConfig(LlavaConfig):
    model_type = "strange"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig


class OwnProcessor(LlavaProcessor):
    pass


class OwnTokenizer(PreTrainedTokenizerFast):
    pass


class OwnImages(CLIPImageProcessor):
    pass


def generate(model, **arguments):
    return type(model).generate(model, **arguments)
"""

CONFIG = {"model_type": "strange", "auto_map": {"AutoConfig": "code.OwnConfig"}}
MODEL = {"AutoModelForImageTextToText": "code.OwnModel"}
FILES = {
    "config": {"config.json": CONFIG},
    "model": {
        "config.json": {
            **CONFIG,
            "auto_map": {**CONFIG["auto_map"], **MODEL},
            "architectures": ["OwnModel"],
        }
    },
    "model of a known type": {"config.json": {"auto_map": MODEL}},
    "processor": {
        "processor_config.json": {
            "processor_class": "OwnProcessor",
            "auto_map": {"AutoProcessor": "code.OwnProcessor"},
        }
    },
    "processor that only the config names": {
        "config.json": {
            "processor_class": "OwnProcessor",
            "auto_map": {"AutoProcessor": "code.OwnProcessor"},
        },
        "processor_config.json": {"processor_class": None},
        "tokenizer_config.json": {"processor_class": None},
    },
    "tokenizer": {
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": [None, "code.OwnTokenizer"]},
        }
    },
    "image processor": {
        "preprocessor_config.json": {
            "image_processor_type": "OwnImages",
            "auto_map": {"AutoImageProcessor": "code.OwnImages"},
        }
    },
    "image processor inside": {
        "processor_config.json": {
            "image_processor": {
                "image_processor_type": "OwnImages",
                "auto_map": {"AutoImageProcessor": "code.OwnImages"},
            }
        }
    },
    "generate": {},
    "generation config": {
        "generation_config.json": {
            "custom_generate": "custom_generate",
            "trust_remote_code": True,
        }
    },
}

REFUSED = ("config", "model", "processor", "image processor inside")
RUN = (*REFUSED, "tokenizer", "generate")
"""What runs where asked for: of known types, transformers takes its own class."""


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a checkpoint with code, and its canary."""

    def write(kind):
        folder = tmp_path / kind.replace(" ", "_")
        shutil.copytree(toy_path(), folder)
        canary = folder / "canary"
        code = CODE.format(canary=str(canary))
        (folder / "code.py").write_text(code)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code)
        for name, changes in FILES[kind].items():
            path = folder / name
            values = json.loads(path.read_text()) if path.exists() else {}
            for key, value in changes.items():
                inner = values.get(key)
                both = isinstance(inner, dict) and isinstance(value, dict)
                values[key] = {**inner, **value} if both else value
            path.write_text(json.dumps(values))
        return folder, canary

    return write


@pytest.fixture(autouse=True)
def saying_yes(monkeypatch, tmp_path):
    """Answer y to whatever is asked, and count the questions."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", tmp_path / "modules")
    before = list(sys.path)
    yield asked
    sys.path[:] = before
    for name in [name for name in sys.modules if "transformers_modules" in name]:
        del sys.modules[name]


def load(folder, **options):
    """Load a folder, or return how it was refused."""
    try:
        return eah.load(folder, verify=False, **options)
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize("kind", FILES)
def test_no_code_runs_that_was_not_asked_for(make, saying_yes, kind):
    folder, canary = make(kind)
    for options in ({}, {"dispatch": False, "trust_remote_code": None}):
        found = load(folder, **options)
        if kind in REFUSED:
            assert "has code of its own, which was not asked for" in found
            assert "trust_remote_code=True" in found
        if isinstance(found, LVLM):
            found.describe(draw_scene(0).pil(), "is there a boat ?", max_new_tokens=1)
    assert not canary.exists()
    assert not saying_yes


@pytest.mark.parametrize("kind", RUN)
def test_code_runs_where_it_is_asked_for(make, saying_yes, kind):
    folder, canary = make(kind)
    model = eah.load(folder, verify=False, trust_remote_code=True)
    assert canary.exists()
    assert model.describe(draw_scene(0).pil(), "is there a boat ?", max_new_tokens=1)
    assert not saying_yes


def test_the_canary_sings_where_transformers_itself_asks(make, saying_yes):
    folder, canary = make("config")
    transformers.AutoConfig.from_pretrained(folder)
    assert saying_yes
    assert canary.exists()


@pytest.mark.parametrize("kind", ["processor", "image processor inside"])
def test_a_wrapped_model_asks_nobody_for_its_processor(make, saying_yes, kind):
    folder, canary = make(kind)
    module = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ModelError, match="has code of its own"):
        eah.wrap(module, verify=False)
    assert not canary.exists()
    assert not saying_yes
    eah.wrap(module, verify=False, trust_remote_code=True)
    assert canary.exists()


@pytest.mark.parametrize("kind", ["model", "processor", "generate"])
def test_no_worker_of_a_study_runs_code(make, saying_yes, kind):
    folder, canary = make(kind)
    model = eah.load()
    manifest = Manifest.of(model, (), (), decoding={}, batch_size=1)
    source = ModelSource(str(folder))
    if kind == "generate":
        Worker(source, manifest)
    else:
        with pytest.raises(ModelError, match="has code of its own"):
            Worker(source, manifest)
    assert not canary.exists()
    assert not saying_yes


STUDY = """\
model: {{name: {folder}}}
items: {{source: toy, n_scenes: 1, questions: false}}
conditions: [baseline]
decoding: {{caption: {{max_new_tokens: 1{decoding}}}}}
"""


def test_no_command_runs_code_whatever_the_input_says(make, tmp_path):
    folder, canary = make("model")
    image, study = tmp_path / "a.png", tmp_path / "s.yaml"
    Image.new("RGB", (64, 64)).save(image)
    study.write_text(STUDY.format(folder=folder, decoding=""))
    for words in (
        ["study", "run", study, "--out", tmp_path / "run"],
        ["ask", image, "Is it?", "-m", folder],
        ["report", image, "-m", folder, "--out", tmp_path / "r.html"],
        ["models", "-m", folder],
    ):
        code = "from eah_interp.cli import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            input="y\n" * 100,
            capture_output=True,
            text=True,
            check=False,
        )
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode in (0, 1), said
        assert "has code of its own, which was not asked for" in said
        assert "Traceback" not in said
        assert not canary.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["custom_generate", "trust_remote_code"])
def test_no_study_file_names_code_that_generates(make, key, tmp_path, saying_yes):
    # The checkpoint's own file has both keys, which makes them known to its config.
    folder, canary = make("generation config")
    value = folder if key == "custom_generate" else "true"
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.format(folder=folder, decoding=f", {key}: {value}"))
    with pytest.raises(SettingsError, match=f"decoding of caption.*got {key}"):
        StudyFile.load(path).study()
    assert not canary.exists()
    assert not saying_yes


def test_generate_takes_a_folders_code_only_where_asked(make, saying_yes):
    folder, canary = make("generate")
    model = eah.load()
    asked = (draw_scene(0).pil(), "is there a boat ?")
    own = {"custom_generate": str(folder), "max_new_tokens": 1}
    with pytest.raises(ModelError, match=r"custom_generate=.* is code"):
        model.describe(*asked, **own)
    with pytest.raises(ModelError, match=r"custom_generate=.* is code"):
        eah.edit(model, eah.EAH()).describe(*asked, **own)
    assert not canary.exists()
    assert not saying_yes


def test_an_attention_backend_on_the_hub_is_code(make):
    with pytest.raises(ModelError, match="backend 'someone/kernel' is code on the Hub"):
        eah.load(attn_implementation="someone/kernel")
    with pytest.raises(ModelError, match="backend 'someone/kernel' is code on the Hub"):
        eah.load(attn_implementation={"text_config": "someone/kernel"})
    folder, _ = make("generate")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "attn_implementation": "someone/kernel"}))
    with pytest.raises(ModelError, match="is code on the Hub"):
        eah.load(folder)


def test_trust_is_a_boolean():
    for wrong in ("yes", 1, "False"):
        with pytest.raises(SettingsError, match="trust_remote_code must be True or"):
            eah.load(trust_remote_code=wrong)


def test_the_question_is_off_only_while_we_load():
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    assert before > 0
    with never_asking():
        assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 0
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE
    error = "a message about nothing else"
    with pytest.raises(ValueError, match=error), never_asking():
        raise ValueError(error)


def test_no_way_to_load_is_beside_these():
    """Hold every `from_pretrained` of the package to the places that are guarded."""
    package = Path(eah.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if ".from_pretrained(" in path.read_text()
    }
    assert found == {"lvlm/loading.py", "toy/training/folder.py"}  # the second: prose
