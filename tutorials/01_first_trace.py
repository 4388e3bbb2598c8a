# %% [markdown]
# # 01 First trace
#
# A model describes a picture and names something that is not in it. To ask why, we
# have to stop its forward pass half way, look, and change something. This tutorial
# does each of these once.
#
# You will load a model, list its hook points, read logits and a residual stream out
# of a trace, patch the model in two lines, and make a patched twin that speaks.

# %%
MODEL = "toy"  # or a checkpoint, such as "llava-hf/llava-1.5-7b-hf"

# %%
import torch

import eah_interp as eah
from eah_interp.toy import draw_scene, objects_in

ON_TOY = MODEL.startswith("toy")
OPTIONS = {} if ON_TOY else {"dtype": "bfloat16", "device_map": "auto"}
model = eah.load(MODEL, **OPTIONS)
print(f"{model.n_layers} layers of {model.n_heads} heads")

# %% [markdown]
# The toy is a LLaVA: a CLIP vision tower, a projector and a Llama decoder, in plain
# Hugging Face classes. It is tiny, it runs on a laptop, and it hallucinates, because it
# learned from text which things go together. Asserts that hold for the toy alone
# stand under `if ON_TOY:`. The others hold for any checkpoint.
#
# ## A picture and an answer
#
# The pictures are drawn by a program, so we know exactly what is in them.

# %%
scene = draw_scene(9)
image = scene.pil()
image.resize((320, 320), 0)

# %%
caption = model.describe(image, "Describe the image.", max_new_tokens=40)
absent = sorted(set(objects_in(caption)) - set(scene.objects))
print("in the picture:", ", ".join(scene.objects))
print("caption:       ", caption)
print("made up:       ", ", ".join(absent))
if ON_TOY:
    assert absent == ["butterfly"]

# %% [markdown]
# There is no butterfly. Butterflies, flowers, trees and mushrooms are one group of the
# toy's world, so it has often read of them together.
#
# ## Where we can look: hook points
#
# A *hook point* is a place in the forward pass where an activation can be read or
# replaced. The package finds them when a model is loaded, by what they are and not by
# their names, runs them once, and refuses a model that does not behave as expected.

# %%
site = model.anatomy.site(1)
print("decoder layer:    ", site.layer_path)
print("attention:        ", site.path)
print("output projection:", site.out_proj)
print("unembedding:      ", model.anatomy.unembedding)
assert model.verified

# %% [markdown]
# ## A trace
#
# A `with model.trace(...)` block is one forward pass. Inside it, every module of the
# model has an `.output`. Assigning to a name and calling `.save()` keeps it after the
# block. Read values in the order in which the model computes them.

# %%
QUESTION = "Is there a butterfly in the image?"
layers = model.model.language_model.layers

with torch.no_grad(), model.trace(image, QUESTION):
    first = layers[0].output.save()
    second = layers[1].output.save()
    logits = model.output.logits.save()

print("residual stream after layer 1:", tuple(second.shape))  # batch, position, d_model
print("logits:                       ", tuple(logits.shape))  # batch, position, vocab
assert first.shape == second.shape
assert logits.shape[:2] == first.shape[:2]

# %% [markdown]
# Looking changes nothing. The model without any tracing gives the same logits, bit by
# bit:

# %%
encoding = model.encode(image, QUESTION)
inputs = {name: tensor.to(model.device) for name, tensor in encoding.items()}
with torch.no_grad():
    untraced = model._module(**inputs).logits
assert torch.equal(untraced, logits)

# %% [markdown]
# Most positions are image tokens: the picture is cut into patches, and each patch
# becomes one position of the prompt. `spans` says which positions, and where in the
# picture each of them was cut.

# %%
(span,) = model.spans(encoding)[0]
print("positions of the prompt:", encoding["input_ids"].shape[1])
print("of these, image tokens: ", len(span.columns), "in a grid of", span.grid)
print("the first one shows:    ", span.place(span.columns[0]))
assert len(span.columns) > encoding["input_ids"].shape[1] / 2
if ON_TOY:
    assert span.grid == (10, 10)
    assert len(span.columns) == 100

# %% [markdown]
# The answer is read at the last position. What does the model think there?

# %%
best = logits[0, -1].float().softmax(-1).topk(2)
for share, token in zip(best.values, best.indices, strict=True):
    print(f"{model.tokenizer.decode(token)!r:12} {share:.3f}")
answer = model.tokenizer.decode(best.indices[0]).strip()
if ON_TOY:
    assert answer == "No"

# %% [markdown]
# Asked directly, the toy says that there is no butterfly, and yet it names one when it
# describes the picture. Yes/no questions and captions measure different things, so
# a study needs both.
#
# ## A patch, in two lines
#
# EAH takes the attention pattern of one head of a shallow layer (the *donor*: the head
# with the densest vision sinks, which tutorial 02 is about) and gives it to the other
# heads of that layer. Inside a trace it is one line; the other line reads what becomes
# of it.

# %%
with torch.no_grad(), model.trace(image, QUESTION):
    before_patch = layers[0].output.save()
    patch = eah.intervene(model, eah.EAH(layers=(1,)))
    after_patch = layers[1].output.save()
    patched_logits = model.output.logits.save()

print("donor:          head", patch.donors.item())
print("density by head:", [round(d, 2) for d in patch.density[0].tolist()])
assert patch.donors.item() == patch.density[0].argmax().item()

# %% [markdown]
# A patch of layer 1 leaves everything before it as it was, and changes what comes
# after it. This is worth checking in every intervention:

# %%
assert torch.equal(before_patch, first)
assert not torch.equal(after_patch, second)

yes, no = (
    model.tokenizer.encode(word, add_special_tokens=False)[-1] for word in ("Yes", "No")
)


def yes_minus_no(of: torch.Tensor) -> float:
    """Read the logit difference at the last position."""
    return (of[0, -1, yes] - of[0, -1, no]).item()


print(f"yes minus no, plain:   {yes_minus_no(logits):+.2f}")
print(f"yes minus no, patched: {yes_minus_no(patched_logits):+.2f}")
if ON_TOY:
    assert yes_minus_no(logits) < yes_minus_no(patched_logits) < 0

# %% [markdown]
# On this question the patch moved the model *towards* the wrong answer, though not
# far enough to change it. One picture can go either way.
#
# ## A patched twin
#
# `eah.edit` makes a patch stick: in every later trace and generation of the twin. The
# weights are shared, and the original stays clean.

# %%
patched = eah.edit(model, eah.EAH(layers=(1,)))
print("plain:  ", model.describe(image, max_new_tokens=40))
print("patched:", patched.describe(image, max_new_tokens=40))
if ON_TOY:
    assert "butterfly" in objects_in(model.describe(image, max_new_tokens=40))
    assert "butterfly" not in objects_in(patched.describe(image, max_new_tokens=40))

# %% [markdown]
# The butterfly is gone. Before we believe that the sinks did it, we ask a control: a
# patch of the same layer whose pattern has no sinks at all, because every row spreads
# its attention evenly over the picture.

# %%
control = eah.edit(model, eah.EAH(layers=(1,), donor="uniform"))
print("control:", control.describe(image, max_new_tokens=40))
if ON_TOY:
    assert "butterfly" not in objects_in(control.describe(image, max_new_tokens=40))

# %% [markdown]
# The control removes it just as well.
#
# ## What this does not show
#
# - One caption of one picture is an anecdote. Whether a patch lowers hallucination is a
#   question about many pictures, with an interval (tutorial 05).
# - That a patch changes the answer does not say *which part* of the patch did.
#   Here a pattern without sinks did the same, so the sinks are not needed for it.
# - Greedy decoding turns small changes of logits into other words. Read the logits.
#
# ## Exercises
#
# 1. Read the residual stream after every layer, and find the first one that differs
#    between the plain and the patched pass at the last position.
# 2. Try `draw_scene(12)` and its made-up lighthouse. Does the same patch remove it?
