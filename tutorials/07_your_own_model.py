# %% [markdown]
# # 07 Your own model, a 7B model on a GPU, or a remote one
#
# The other tutorials run on the embedded toy. This one takes the path of a stranger's
# checkpoint: a folder on disk, a model already in memory, a large model on a GPU, and
# a model that somebody else runs for you (NDIF).
#
# To stay small it builds a LLaVA with random weights. It sees nothing and says nothing
# of sense, but it has the real forward pass and a real processor, so much of what can
# break with your model can break here.

# %%
MODEL = "tiny"  # or "llava-hf/llava-1.5-7b-hf", or "ndif:llava-hf/llava-1.5-7b-hf"

# %%
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import eah_interp as eah
from eah_interp.errors import EAHError, SettingsError
from eah_interp.testing import tiny_folder, tiny_lvlm
from eah_interp.toy import draw_scene

ON_TINY = MODEL == "tiny"
ON_NDIF = MODEL.startswith("ndif:")
image = draw_scene(5).pil()
QUESTION = "Is there a cat in the image?"

# %% [markdown]
# ## From disk
#
# `eah.load` takes a Hub id, or a folder that `save_pretrained` wrote. Everything else
# is passed to transformers' `from_pretrained`. For a large model you want:
#
# | argument | why |
# | --- | --- |
# | `dtype="bfloat16"` | half the memory of float32 |
# | `device_map="auto"` | weights go to the GPU, or are spread over several |
# | `attn_implementation="sdpa"` | the default; `"eager"` makes every pattern |
# | `revision="..."` | the same weights tomorrow |

# %%
scratch = tempfile.TemporaryDirectory()
if ON_TINY:
    folder = tiny_folder(Path(scratch.name) / "llava", "llava", n_kv_heads=2)
    model = eah.load(folder)
elif ON_NDIF:
    model = eah.load(MODEL.removeprefix("ndif:"), dispatch=False)  # no weights here
else:
    model = eah.load(MODEL, dtype="bfloat16", device_map="auto")

print(
    f"{model.n_layers} layers of {model.n_heads} heads, {model.n_kv_heads} key groups"
)

# %% [markdown]
# ## What is checked at load
#
# Hook points are found by what they are, then run once on a few tokens. If an edit of
# the attention call did not move the logits, you would get an error here, and not a
# table of zeros later.

# %%
site = model.anatomy.site(1)
print("attention:  ", site.path)
print("projection: ", site.out_proj)
print("final norm: ", model.anatomy.final_norm)
print("image token:", model.anatomy.image_token_id)
assert model.verified or ON_NDIF

# %% [markdown]
# A model that does not fit is refused with the reason. Here is one that reads pictures
# by cross-attention, so that there are no image columns to score:

# %%
try:
    eah.wrap(tiny_lvlm("mllama"))
except EAHError as error:
    refusal = str(error)
print(refusal)
assert "cross-attention" in refusal

# %% [markdown]
# And a layer that is not there:

# %%
try:
    eah.edit(model, eah.EAH(layers=(model.n_layers,)))
except SettingsError as error:
    refusal = str(error)
print(refusal)
assert f"layer {model.n_layers} does not exist" in refusal

# %% [markdown]
# ## The same lines as on the toy
#
# `remote=` is the only thing that differs on NDIF.

# %%
where = {"remote": True} if ON_NDIF else {}
with torch.no_grad(), model.trace(image, QUESTION, **where):
    patch = eah.intervene(model, eah.EAH(layers=(1,)))
    logits = model.output.logits[:, -1].save()

print("donor:          ", patch.donors.tolist())
print("density by head:", [round(d, 2) for d in patch.density[0].tolist()])
assert patch.density.shape == (1, model.n_heads)

# %% [markdown]
# ## A model in memory
#
# Fine-tuned it, quantised it, or changed its config? `wrap` takes the object that you
# have. Weights are shared, not copied.

# %%
if ON_TINY:
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(folder)
    wrapped = eah.wrap(loaded, processor)
    with torch.no_grad(), wrapped.trace(image, QUESTION):
        half_patch = eah.intervene(wrapped, eah.EAH(layers=(1,)))
        half = wrapped.output.logits[:, -1].save()
    apart = (half.float() - logits).abs().max() / logits.abs().max()
    print(
        "dtype of logits:", half.dtype, " dtype of densities:", half_patch.density.dtype
    )
    print(f"float32 and bfloat16 differ by {apart:.3f} of the largest logit")
    assert half.dtype == torch.bfloat16
    assert half_patch.density.dtype == torch.float32
    assert 0 < apart < 0.1
    assert half_patch.donors.tolist() == patch.donors.tolist()

# %% [markdown]
# Scores are float32 whatever the model is in. Still, half precision moves patterns a
# little, and where two heads are about as dense it may move the *donor*. If your result
# hangs on one donor, look at the densities.
#
# ## On a GPU
#
# Nothing changes but `device_map`. What you `.save()` stays on the model's device.
# Patterns are never materialised, so memory beyond the plain forward pass is small
# (`docs/performance.md` has measurements). Real checkpoints have not been run where
# this package is built, because nothing can be downloaded there. If one is refused or
# misbehaves, that is worth an issue.

# %%
parameter = next(model._module.parameters())
print("weights:", parameter.dtype, "on", parameter.device)
if torch.cuda.is_available() and not (ON_TINY or ON_NDIF):
    assert parameter.device.type == "cuda"

# %% [markdown]
# ## On somebody else's GPU: NDIF
#
# NDIF runs models for researchers, and nnsight sends it your traces. Get a key, say it
# once, and add `remote=True`:
#
# ```python
# from nnsight import CONFIG
#
# CONFIG.set_default_api_key("...")
# model = eah.load("llava-hf/llava-1.5-7b-hf", dispatch=False)
# with model.trace(image, QUESTION, remote=True):
#     patch = eah.intervene(model, eah.EAH(layers=(1,)))
# ```
#
# The server does not have this package. Its source travels with the trace. nnsight can
# simulate that on your own machine, `remote="local"`: the trace is packed, sent
# nowhere, unpacked and run. It is the same, bit by bit:

# %%
if ON_TINY:
    with torch.no_grad(), model.trace(image, QUESTION, remote="local"):
        simulated_patch = eah.intervene(model, eah.EAH(layers=(1,)))
        simulated = model.output.logits[:, -1].save()
    assert torch.equal(simulated, logits)
    assert simulated_patch.donors.tolist() == patch.donors.tolist()
    print("equal:", torch.equal(simulated, logits))

# %%
scratch.cleanup()

# %% [markdown]
# ## What this does not show
#
# - That NDIF serves a vision-language model today, or runs our trace: the simulation
#   was tested (also in a process without this package), the server was not.
# - That EAH does anything good for your model. It runs; tutorial 05 asks whether it
#   helps.
# - Anything about families that `docs/models.md` does not list. They may work, since
#   hook points are found by what they are; or they are refused.
#
# ## Exercises
#
# 1. Build another family, `tiny_folder(path, "qwen2_5_vl")`, and print its image spans.
#    Which place in the picture does its first image token show?
# 2. Load the tiny model with `attn_implementation="eager"`. Does the patch change the
#    logits in the same way, up to rounding?
