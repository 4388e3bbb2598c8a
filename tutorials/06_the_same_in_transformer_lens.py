# %% [markdown]
# # 06 The same in TransformerLens
#
# Your tools may be written for TransformerLens: hooks with names such as
# `blocks.1.attn.hook_pattern`, and `run_with_cache`. This tutorial carries the model
# and the patch over, and checks that every number is the same as nnsight's. Two
# libraries that agree are also a second opinion on both.
#
# It needs `pip install "eah-interp[lens]"`.

# %%
MODEL = "toy"  # or a checkpoint, such as "llava-hf/llava-1.5-7b-hf"

# %%
import warnings

import torch

import eah_interp as eah
from eah_interp.attribution import read_patterns
from eah_interp.toy import draw_scene
from eah_interp.transformer_lens import eah_hooks, score_sinks, to_bridge

warnings.filterwarnings("ignore", category=UserWarning, module="transformer_lens")

ON_TOY = MODEL.startswith("toy")
OPTIONS = {} if ON_TOY else {"dtype": "bfloat16", "device_map": "auto"}
TOLERANCE = 1e-5 if ON_TOY else 0.05  # of the largest logit: float32, or bfloat16
model = eah.load(MODEL, **OPTIONS)

LAYER = 1
image = draw_scene(5).pil()
QUESTION = "Is there a car in the image?"

# %% [markdown]
# ## A bridge
#
# A `TransformerBridge` is TransformerLens's view of a Hugging Face model. `to_bridge`
# builds one around the *same* parameter tensors: no second copy of the weights.

# %%
bridge = to_bridge(model)
ours = {p.data_ptr() for p in model._module.parameters()}
theirs = {p.data_ptr() for p in bridge.original_model.parameters()}
assert theirs == ours
print(type(bridge).__name__, "with", bridge.cfg.n_layers, "layers")
assert bridge.cfg.n_layers == model.n_layers

# %% [markdown]
# ## The same logits
#
# Picture and question are encoded by the model's own processor. The bridge takes token
# ids first and the rest by name.

# %%
inputs = model.encode(image, QUESTION)
rest = dict(inputs)
ids = rest.pop("input_ids")

with torch.no_grad():
    plain, cache = bridge.run_with_cache(ids, **rest)
with torch.no_grad(), model.trace(image, QUESTION):
    traced = model.output.logits.save()


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Say how far logits are apart, as a share of the largest."""
    return ((one - other).abs().max() / other.abs().max()).item()


print(f"plain: bridge and nnsight differ by {largest_difference(plain, traced):.0e}")
assert largest_difference(plain, traced) < TOLERANCE

# %% [markdown]
# The cache holds every hook point by name. Patterns have the shape batch, head, query,
# key. They are the patterns of tutorial 02:

# %%
pattern = cache[f"blocks.{LAYER}.attn.hook_pattern"]
print("pattern:", tuple(pattern.shape))
heads = [f"L{LAYER}H{head}" for head in range(model.n_heads)]
read = read_patterns(model, image, QUESTION, heads=heads, query="all")
assert torch.allclose(pattern.float().cpu(), read.plain.rows, atol=TOLERANCE)

found = score_sinks(cache, inputs=inputs)
expected = eah.score_sinks(model, image, QUESTION)
print("densest head by layer:", found.donors[0].tolist())
assert torch.equal(found.donors, expected.donors)
if ON_TOY:
    assert torch.equal(found.sinks, expected.sinks)

# %% [markdown]
# ## The patch as hooks, by hand
#
# In TransformerLens a patch is a function of an activation and its hook.

# %%
donor = found.donors[0, LAYER].item()


def copy_donor(pattern: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
    """Give every head the donor's pattern."""
    return pattern[:, [donor]].expand_as(pattern).clone()


with torch.no_grad():
    by_hand = bridge.run_with_hooks(
        ids, fwd_hooks=[(f"blocks.{LAYER}.attn.hook_pattern", copy_donor)], **rest
    )

# %% [markdown]
# ## The patch as hooks, from the package
#
# `eah_hooks` returns hooks that choose the donor themselves, in the pass. Every setting
# of `EAH` works, controls included.

# %%
settings = eah.EAH(layers=(LAYER,))
hooks = eah_hooks(bridge, settings, inputs=inputs)
with torch.no_grad():
    hooked = bridge.run_with_hooks(ids, fwd_hooks=hooks, **rest)
with torch.no_grad(), model.trace(image, QUESTION):
    patch = eah.intervene(model, settings)
    in_nnsight = model.output.logits.save()

print("donor in TransformerLens:", hooks.patch.donors.tolist())
print("donor in nnsight:        ", patch.donors.tolist())
assert hooks.patch.donors.tolist() == patch.donors.tolist() == [donor]
for name, logits in (("by hand", by_hand), ("eah_hooks", hooked)):
    apart = largest_difference(logits, in_nnsight)
    print(f"{name:9} against nnsight: {apart:.0e}")
    assert apart < TOLERANCE
effect = largest_difference(hooked, traced)
print(f"the patch itself:         {effect:.2f}")
assert effect > 2 * TOLERANCE

# %% [markdown]
# ## Under a patch, with everything else that you have
#
# Within `bridge.hooks(...)` any of TransformerLens's tools sees the patched model. Here
# is the cache again: in the patched layer all heads have one pattern.

# %%
with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
    again, patched_cache = bridge.run_with_cache(ids, **rest)
assert largest_difference(again, in_nnsight) < TOLERANCE

for layer in (LAYER - 1, LAYER, LAYER + 1):
    name = f"blocks.{layer}.attn.hook_pattern"
    now = patched_cache[name]
    same_heads = torch.allclose(now, now[:, [0]].expand_as(now), atol=TOLERANCE)
    changed = not torch.allclose(now, cache[name], atol=TOLERANCE)
    print(f"layer {layer}: changed {changed}, one pattern for all heads {same_heads}")
    assert changed == (layer >= LAYER)
    assert same_heads == (layer == LAYER)

# %% [markdown]
# ## What this does not show
#
# - That every family has a bridge. TransformerLens has some; `docs/models.md` says
#   which were compared. The others are refused with a reason; nnsight works on them.
# - That `hook_pattern` can be edited everywhere. On some bridges (Qwen-VL's, GLM-4V's)
#   the model does not compute with it, so an edit by hand changes *nothing*, without a
#   word. `eah_hooks` takes another way there and checks in every pass that the patch
#   took. Check yourself, as above: does your edit move the logits?
# - Speed. A bridge uses eager attention and so makes every pattern; nnsight's patch
#   leaves the attention backend alone.
#
# ## Exercises
#
# 1. Patch `blocks.1.attn.hook_z` of one head to zero, and compare with
#    `eah_interp.attribution.ablate_heads(..., heads=["L1H0"])`.
# 2. Use `EAH(donor="uniform")` in both libraries. Are the logits still the same?
