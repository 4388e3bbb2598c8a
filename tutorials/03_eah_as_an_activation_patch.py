# %% [markdown]
# # 03 EAH as an activation patch
#
# EAH gives one head's attention pattern to the other heads of its layer. That is an
# activation patch, and nothing in it needs a special library: here you write it by hand
# in plain nnsight, twice, and see that the one-line version does exactly the same.
# Then you ask the question that decides what an effect means: compared with what?

# %%
MODEL = "toy"  # or a checkpoint, such as "llava-hf/llava-1.5-7b-hf"

# %%
import matplotlib.pyplot as plt
import torch

import eah_interp as eah
from eah_interp.attribution import score_broadcast
from eah_interp.statistics import estimate_mean
from eah_interp.toy import draw_scene, draw_scenes, prompt_for, questions_for
from eah_interp.viz import plot_donors

ON_TOY = MODEL.startswith("toy")
OPTIONS = {} if ON_TOY else {"dtype": "bfloat16", "device_map": "auto"}
TOLERANCE = 1e-5 if ON_TOY else 0.05  # of the largest logit: float32, or bfloat16
model = eah.load(MODEL, **OPTIONS)

LAYER = 1
scene = draw_scene(5)
image = scene.pil()
QUESTION = "Is there a car in the image?"
print(", ".join(scene.objects))
image.resize((320, 320), 0)

# %% [markdown]
# There is no car, but there is a whole street of things that go with one. The toy sees
# a car. We read the logit of "Yes" minus the logit of "No", the *logit difference*.

# %%
yes, no = (
    model.tokenizer.encode(word, add_special_tokens=False)[-1] for word in ("Yes", "No")
)


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Read yes minus no at the last position of every row."""
    return (logits[:, -1, yes] - logits[:, -1, no]).float().cpu()


with torch.no_grad(), model.trace(image, QUESTION):
    plain = model.output.logits.save()

print(f"yes minus no, plain: {logit_difference(plain).item():+.2f}")
if ON_TOY:
    assert "car" not in scene.objects
    assert logit_difference(plain).item() > 0

# %% [markdown]
# ## Who donates?
#
# The head with the most vision sinks in the layer (tutorial 02).

# %%
sinks = eah.score_sinks(model, image, QUESTION, layers=[LAYER])
donor = sinks.donors[0, 0].item()
print(
    "donor:", f"L{LAYER}H{donor}", f"with a density of {sinks.density[0, 0, donor]:.2f}"
)
assert donor == sinks.density[0, 0].argmax().item()

# %% [markdown]
# ## By hand, 1: replace the pattern
#
# With eager attention the pattern is a tensor in the forward pass: the output of a
# softmax. nnsight's `.source` reaches the lines of a function; calls are numbered in
# the order in which they stand there. We take the donor's pattern for every head.

# %%
eager = eah.load(MODEL, attn_implementation="eager", **OPTIONS)

with torch.no_grad(), eager.trace(image, QUESTION):
    attention = eager.model.language_model.layers[LAYER].self_attn.source
    softmax = attention.attention_interface_1.source.nn_functional_softmax_0
    pattern = softmax.output
    softmax.output = pattern[:, [donor]].expand_as(pattern)
    by_pattern = eager.output.logits.save()

print(f"yes minus no: {logit_difference(by_pattern).item():+.2f}")

# %% [markdown]
# Every head keeps its own values and its own slice of the output projection. Only where
# it looks has changed.
#
# ## By hand, 2: replace queries and keys
#
# SDPA and FlashAttention never make the pattern, so there is nothing to replace. But
# the pattern is a function of queries, keys and a mask, and only the first two differ
# between heads. So hand every head the donor's queries and every group the donor's
# keys: the pattern *is* then the donor's, under any backend. In grouped-query attention
# several heads share a group's keys.

# %%
group = donor // (model.n_heads // model.n_kv_heads)

with torch.no_grad(), model.trace(image, QUESTION):
    attention = model.model.language_model.layers[LAYER].self_attn.source
    call = attention.attention_interface_1
    (module, queries, keys, values, *rest), options = call.inputs
    queries = queries[:, [donor]].expand_as(queries)
    keys = keys[:, [group]].expand_as(keys)
    call.inputs = (module, queries, keys, values, *rest), options
    by_queries = model.output.logits.save()

print(f"yes minus no: {logit_difference(by_queries).item():+.2f}")

# %% [markdown]
# ## In one line

# %%
with torch.no_grad(), model.trace(image, QUESTION):
    patch = eah.intervene(model, eah.EAH(layers=(LAYER,)))
    in_one_line = model.output.logits.save()

assert patch.donors.tolist() == [donor]
size = plain.abs().max()
for name, by_hand in (("pattern", by_pattern), ("queries and keys", by_queries)):
    error = ((by_hand - in_one_line).abs().max() / size).item()
    print(f"by hand, {name}: as the library, to {error:.0e} of the largest logit")
    assert error < TOLERANCE
effect = ((in_one_line - plain).abs().max() / size).item()
print(f"what the patch itself changes: {effect:.2f} of the largest logit")
assert effect > 2 * TOLERANCE

# %% [markdown]
# All three are the same patch, up to rounding. What the library adds is the donor rule,
# batches with padding, masks of other kinds, some recipients only, a check that the
# hook point is what it seems, and refusals where a patch would silently do nothing.
#
# Here is what the patch did to the layer: every line is a head, every cell an image
# column; purple is a vision sink. Afterwards all heads read as the donor does.

# %%
before_after = score_broadcast(model, image, QUESTION, eah=eah.EAH(layers=(LAYER,)))
after = before_after.patched.scores[0, 0]
assert torch.allclose(after, after[[donor]].expand_as(after), atol=TOLERANCE)
plot_donors(before_after)

# %% [markdown]
# ## Compared with what?
#
# The logit difference fell, which is what the method promises. But many things change
# when a layer's heads lose their own patterns. A *control* is a patch as large that
# lacks what is claimed:
#
# - `"sparsest"`: the head with the *fewest* sinks donates;
# - `"random"`: a random head does;
# - `"mean"`: the mean of all patterns;
# - `"uniform"`: every row spreads its attention evenly over the picture;
# - `"shuffled"`: the donor's pattern, its image columns permuted.

# %%
DONORS = ("densest", "sparsest", "random", "mean", "uniform", "shuffled")
single = {}
for rule in DONORS:
    with torch.no_grad(), model.trace(image, QUESTION):
        eah.intervene(model, eah.EAH(layers=(LAYER,), donor=rule))
        patched_logits = model.output.logits.save()
    single[rule] = logit_difference(patched_logits).item()

print(f"{'plain':10} {logit_difference(plain).item():+.2f}")
for rule, value in single.items():
    print(f"{rule:10} {value:+.2f}")
if ON_TOY:
    assert min(single, key=single.get) == "densest"
    lower = [rule for rule in DONORS if single[rule] < logit_difference(plain).item()]
    assert lower == ["densest", "sparsest", "mean", "uniform", "shuffled"]

# %% [markdown]
# On this picture the densest donor lowers the false yes most, and every control but one
# lowers it too. Tempting. One picture is one picture, though: we asked about it because
# the toy is wrong there. So ask about many, and not only about objects that are absent.
# A patch that makes the model say no to everything is no cure.

# %%
if ON_TOY:
    scenes = draw_scenes(range(60))
    asked = [
        (s.pil(), prompt_for(q.text), q.answer)
        for s in scenes
        for q in questions_for(s, sampling="adversarial")
    ]
    pictures, prompts, answers = (list(column) for column in zip(*asked, strict=True))
    present = torch.tensor(answers)
    batch = model.encode(pictures, prompts)

    with torch.no_grad(), model.trace(**batch):
        everywhere = model.output.logits.save()
    moved = {}
    for rule in DONORS:
        with torch.no_grad(), model.trace(**batch):
            eah.intervene(model, eah.EAH(layers=(LAYER,), donor=rule))
            patched_logits = model.output.logits.save()
        change = logit_difference(patched_logits) - logit_difference(everywhere)
        moved[rule] = tuple(
            estimate_mean(change[rows].tolist()) for rows in (~present, present)
        )
    print(f"{'':10} absent objects          present objects")
    for rule, (absent, there) in moved.items():
        print(f"{rule:10} {absent.write(2):22}  {there.write(2)}")

# %%
if ON_TOY:
    figure, one = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    for row, pair in enumerate(moved.values()):
        for which, (effect, colour) in enumerate(
            zip(pair, ("#D55E00", "#0072B2"), strict=True)
        ):
            place = row + 0.16 * (2 * which - 1)
            name = ("absent object", "present object")[which] if row == 0 else None
            one.plot([effect.low, effect.high], [place] * 2, color=colour, label=name)
            one.plot(effect.estimate, place, "o", color=colour, markersize=4)
    one.axvline(0, color="0.5", linewidth=0.7)
    one.set_yticks(range(len(moved)), list(moved))
    one.invert_yaxis()
    one.set_xlabel("change of yes minus no, with 95 % intervals")
    one.legend(frameon=False, fontsize=8)
    for absent, there in moved.values():
        assert absent.level == there.level == 0.95

# %% [markdown]
# What do we see?
#
# - Absent objects, where a yes is a hallucination: for the densest donor the interval
#   holds zero. **No effect shown.** The picture we began with was a lucky pick.
# - Of all rules only `"uniform"`, which has no sinks at all, shows a fall there.
# - Present objects, where a yes is right: every donor lowers it, and more than it
#   lowers the false yes. What a patch does here is mostly to make the toy say no.

# %%
if ON_TOY:
    assert not moved["densest"][0].excludes_zero
    shown = [rule for rule in DONORS if moved[rule][0].high < 0]
    assert shown == ["uniform"]
    assert all(there.high < 0 for _, there in moved.values())
    assert all(there.estimate < absent.estimate for absent, there in moved.values())

# %% [markdown]
# ## What this does not show
#
# - Logit differences of yes/no questions are not captions. Captions are the paper's
#   main measure; tutorial 05 has them, with their own trap (length).
# - These are some scenes and one toy: an interval that holds zero says that we cannot
#   tell, not that there is nothing. It says nothing about a 7B model.
# - Rules were compared with the plain model, not with each other. "Significant here and
#   not there" is no comparison; compare two donors on the same questions, paired.
#
# ## Exercises
#
# 1. Do that: the interval of the densest donor's change minus the shuffled donor's, on
#    the questions about absent objects.
# 2. Patch only some heads by hand under eager attention, and check yourself against
#    `EAH(recipients=(0, 3))`. Why is the second way, by queries and keys, harder there?
