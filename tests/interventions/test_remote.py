"""A trace with an intervention runs where `eah_interp` is not installed."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from eah_interp.testing import tiny_folder

CLIENT = """
import sys
import torch
from safetensors.torch import save_file
from nnsight.schema.request import RequestModel
import eah_interp as eah
from eah_interp.testing import random_image

folder, blob_file, out_file = sys.argv[1:]
model = eah.load(folder)
image, prompt = random_image(), "is there a cat ?"

with torch.no_grad(), model.trace(image, prompt, remote="local"):
    patch = eah.intervene(model, SETTINGS)
    logits = model.output.logits.save()
simulated = logits

with torch.no_grad(), model.trace(image, prompt):
    patch = eah.intervene(model, SETTINGS)
    logits = model.output.logits.save()
assert torch.equal(simulated, logits), "the simulation differs from a local run"
save_file({"reported": REPORTED, "logits": logits}, out_file)
assert eah.load is not None and eah.intervene.__annotations__, "not put back"

# Keep the request that would go over the network.
def keep(blob, *args, **kwargs):
    open(blob_file, "wb").write(blob)
    raise SystemExit(0)

RequestModel.deserialize = staticmethod(keep)
with torch.no_grad(), model.trace(image, prompt, remote="local"):
    patch = eah.intervene(model, SETTINGS)
    reported = REPORTED.save()
    logits = model.output.logits.save()
"""

REPORTED = {
    "eah.EAH": "patch.donors",
    "eah.Ablation": "torch.tensor(patch.layers)",
    "eah.PAI": "torch.tensor(patch.layers)",
    "eah.VAR": "patch.learned[1]",
}
"""What each intervention says of itself, as a tensor."""

SERVER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("eah_interp", "jaxtyping", "beartype"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from safetensors.torch import save_file

folder, blob_file, out_file = sys.argv[1:]
model = TransformersModel(folder, task="image-text-to-text", dispatch=True)
blob = open(blob_file, "rb").read()
request = RequestModel.deserialize(blob, model._remoteable_persistent_objects())
from nnsight.tracing import tracer as scope
scope.inc()
with torch.no_grad():
    request.execute(request.info.code)
found = request.info.frame.f_locals
save_file({"reported": found["reported"], "logits": found["logits"]}, out_file)
assert "eah_interp" not in sys.modules or not hasattr(
    sys.modules["eah_interp"], "__file__"
)
"""


@pytest.mark.parametrize(
    "settings",
    [
        "eah.EAH()",
        "eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.3)",
        pytest.param('eah.EAH(donor="uniform")', marks=pytest.mark.slow),
        pytest.param("eah.EAH(recipients=(0, 1))", marks=pytest.mark.slow),
        pytest.param(
            'eah.Ablation(heads=("L1H2",), how="mean")', marks=pytest.mark.slow
        ),
        pytest.param(
            'eah.Ablation(heads=("L0H0", "L1H1"), how="knockout")',
            marks=pytest.mark.slow,
        ),
        pytest.param("eah.PAI(layers=(1,))", marks=pytest.mark.slow),
        pytest.param('eah.EAH(layers=(0,)), tower="vision"', marks=pytest.mark.slow),
    ],
)
def test_a_server_without_the_package_computes_the_same(
    tmp_path, pytestconfig, settings
):
    body = f"    patch = eah.intervene(model, {settings})"
    reported = REPORTED[settings.split("(")[0]]
    check_server(tmp_path, pytestconfig, body, reported)


BY_NAME = """
    mask = model.image_mask
    model.vision_values[0][:, 1] *= 0.5
    model.vision_attention_probabilities[0] *= 0.9
    model.vision_mlps_output[0] = model.vision_mlps_output[0] * 2
    queries = model.queries[0]
    model.attention_probabilities[1] *= ~mask[:, None, None]
    model.heads_output[1][:, 2] = 0
    model.mlps_output[-1] = model.mlps_output[-1] * 2
    patch = model.layers_output[-1].save()
    model.logits = model.logits / 2
"""


def test_a_server_without_the_package_knows_hook_points_by_name(tmp_path, pytestconfig):
    check_server(tmp_path, pytestconfig, BY_NAME, "patch.clone()")


STEER = """
from eah_interp.interventions import Directions

values = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
steer = eah.Steer(vectors=Directions(values, (0, 1, 2)), scale=0.5)
"""


@pytest.mark.slow
def test_a_server_without_the_package_steers_along_the_same_vectors(
    tmp_path, pytestconfig
):
    body = "    patch = eah.intervene(model, steer)"
    reported = "torch.tensor(patch.layers)"
    check_server(tmp_path, pytestconfig, body, reported, setup=STEER)


def check_server(tmp_path, pytestconfig, body, reported, *, setup=""):
    """Run a trace's body on a client and on a server, and compare."""
    folder = tiny_folder(tmp_path / "model", "llava", n_kv_heads=2)
    request = tmp_path / "request.bin"
    outputs = []
    for name, text in (("client", CLIENT), ("server", SERVER)):
        script = tmp_path / f"{name}.py"
        program = text.replace("    patch = eah.intervene(model, SETTINGS)", body)
        if name == "client":
            begin = "folder, blob_file, out_file = sys.argv[1:]"
            program = program.replace(begin, begin + setup, 1)
        script.write_text(program.replace("REPORTED", reported))
        outputs.append(tmp_path / f"{name}.safetensors")
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("PYTHONPATH", None)
        if name == "client":
            env["PYTHONPATH"] = str(pytestconfig.rootpath)
        done = subprocess.run(
            [sys.executable, str(script), str(folder), str(request), str(outputs[-1])],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=env,
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    client, server = (load_file(path) for path in outputs)
    assert torch.equal(client["reported"], server["reported"])
    assert torch.equal(client["logits"], server["logits"])
