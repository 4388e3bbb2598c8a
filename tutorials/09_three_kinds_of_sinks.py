# %% [markdown]
# # 09 Three kinds of sinks
#
# Tutorial 02 counted every image column that a head looks at a lot. Where such columns
# come from, it did not ask. There are three answers, and they are different things:
#
# - sinks of the **vision tower**: tokens that leave it with a huge norm;
# - sinks of the **language model**: columns that its own layers make massive, in a few
#   dimensions of the residual stream;
# - **learned** sinks: parameters of a head that take a share of its attention, and are
#   no tokens at all.
#
# This notebook tells them apart, and asks what those of either tower do and say. The
# toy has none: we say so first, and then plant some.

# %%
MODEL = "toy"  # or a checkpoint, such as "llava-hf/llava-1.5-7b-hf"

# %%
import matplotlib.pyplot as plt
import torch

import eah_interp as eah
from eah_interp.attribution import attribute_patches
from eah_interp.interventions import SinkEdit, find_sinks, map_tower
from eah_interp.statistics import estimate_mean
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from eah_interp.toy import draw_scene, draw_scenes

ON_TOY = MODEL.startswith("toy")
OPTIONS = {} if ON_TOY else {"dtype": "bfloat16", "device_map": "auto"}
model = eah.load(MODEL, **OPTIONS)
scene = draw_scene(0)
image, QUESTION = scene.pil(), "Is there a flower in the image?"
scene.objects

# %% [markdown]
# ## Does this model have any?
#
# `find_sinks` reads both towers in one forward pass. A token is a sink of the tower if
# its norm is far above its item's median; a column is one of the language model if some
# layer of it returns a massive activation there that did not come in with it. How much
# attention a column gets decides nothing.

# %%
found = find_sinks(model, image, QUESTION)
found

# %%
scenes = draw_scenes(range(16))
pictures = [one.pil() for one in scenes]
many = find_sinks(model, pictures, QUESTION)
counts = {kind: int(many.mask(kind).sum()) for kind in ("all", "tower", "language")}
print(counts)
ratio = many.tower_scores[many.columns].max().item()
print(f"the largest norm of the tower is {ratio:.2f} of its threshold")
if ON_TOY:
    assert counts == {"all": 1600, "tower": 0, "language": 0}
    assert ratio < 1
    assert not len(many.learned_frame())

# %% [markdown]
# None of 1600 columns is a sink of either kind, and no head has a learned one. That is
# no flaw of the toy: its tower is small, and it was trained for a short time. But it
# means that what EAH calls vision sinks on the toy (tutorial 02) are columns that heads
# look at, and nothing more.
#
# Thresholds are a choice. With these others there would be none either:

# %%
others = many.sensitivity()
assert not ON_TOY or not others[["tower", "language"]].to_numpy().any()
others

# %% [markdown]
# ## Plant some
#
# A twin of the model, with two changes that its trace makes by itself: one token of the
# tower is made 30 times as large, and one dimension of another column is set to 3000
# where layer 0 returns it. Everything below is about these two.

# %%
span = found.spans[0][0]
IN_TOWER, IN_LANGUAGE = span.columns[22], span.columns[58]
(token,) = map_tower(model, image, QUESTION).tokens_of(IN_TOWER)
DIM, TIMES, VALUE = 11, 30, 3000.0

with model.edit() as (_, planted):
    tokens = planted.vision_output.clone()
    tokens[:, token] *= TIMES
    planted.vision_output = tokens
    stream = planted.layers_output[0].clone()
    stream[:, IN_LANGUAGE, DIM] = VALUE
    planted.layers_output[0] = stream

seen = find_sinks(planted, image, QUESTION)
sinks = seen.frame().query("kind != 'none'")
sinks[["column", "kind", "tower_score", "dim", "layer", "value", "rule"]]

# %%
if ON_TOY:
    assert (TIMES, VALUE) == (30, 3000)
    assert seen.kind_of(IN_TOWER) == "tower"
    assert seen.kind_of(IN_LANGUAGE) == "language"
    assert len(sinks) == 2
    assert find_sinks(model, image, QUESTION).mask("none").sum() == 100  # not this one

# %% [markdown]
# They are found where they were planted, each by its kind, and no other is. The model
# itself is as it was: the twin shares its weights and has none of them.

# %%
seen.plot(image=image)

# %%
seen.plot_norms()

# %% [markdown]
# Norms tell the two apart at a glance. The tower's sink is large already before the
# dotted line, and enters the decoder so; that of the language model comes out of
# nowhere, in the decoder.
#
# ## Do heads look at them?

# %%
by_kind = seen.frame().groupby("kind")[["from_image", "from_words", "share"]].mean()
by_kind.round(4)

# %%
if ON_TOY:
    assert by_kind["share"]["tower"] > by_kind["share"]["none"]
    assert by_kind["share"]["language"] > by_kind["share"]["none"]
    assert by_kind["from_words"].max() < 2 * by_kind["from_words"].min()

# %% [markdown]
# Somewhat: both are sinks (by the score of tutorial 02) in a larger share of heads than
# other columns. But words look at them less than twice as much as at any column. In
# large models sinks draw many times an even share. There the model has learned to look
# at them; here we have only put large numbers where nobody expects them.
#
# ## Donors by kind
#
# EAH takes for its donor the head that is densest in sinks. `columns=` says which
# columns may count as sinks.

# %%
donors = {
    columns: eah.score_sinks(planted, image, QUESTION, columns=columns).donors[0]
    for columns in ("all", "tower", "language")
}
for columns, heads in donors.items():
    print(f"{columns:9} donor of each layer:", heads.tolist())
if ON_TOY:
    assert len({heads[1].item() for heads in donors.values()}) == 3
    assert donors["language"][0] == -1

# %% [markdown]
# In layer 1 the three rules choose three heads. In layer 0 no head is dense in sinks of
# the language model (-1 is nobody): what enters that layer, no layer has made.
#
# ## What do they do?
#
# If a sink is useful, answers get worse without it. `SinkEdit` drops sinks of a kind
# (no other token may attend to them), or puts the mean of the other columns in their
# place. Its controls do the same to as many other columns: drawn at random, or like the
# sinks in norm, or in attention. We ask two questions about each scene: about an object
# that is there, and one that is likely and is not. What is measured is the margin by
# which the true answer's logit lies above the false one's.

# %%
if ON_TOY:
    from eah_interp.toy import questions_for

    pairs = [questions_for(one, sampling="adversarial") for one in scenes]
    asked = [pair[k] for k in (0, 1) for pair in pairs]
    texts, shown = [one.text for one in asked], pictures * 2
    truth = torch.tensor([1.0 if one.answer else -1.0 for one in asked])
    # Both words as they follow a space.
    yes, no = (model.tokenizer.tokenize(f"a {word}")[1] for word in ("Yes", "No"))
    yes, no = model.tokenizer.convert_tokens_to_ids([yes, no])

    def margins(model: eah.LVLM, edit: SinkEdit | None = None) -> torch.Tensor:
        """Read by how much each true answer is ahead, under an edit."""
        twin = model if edit is None else eah.edit(model, edit)
        with torch.no_grad(), twin.trace(shown, texts):
            logits = twin.logits[:, -1].save()
        return truth * (logits[:, yes] - logits[:, no])

    bare, whole = margins(model), margins(planted)
    right = (bare > 0).float().mean().item(), (whole > 0).float().mean().item()
    print(f"right answers, as it is and planted: {right[0]:.2f}, {right[1]:.2f}")
    assert right[0] > 0.8
    assert torch.equal(bare > 0, whole > 0)

# %% [markdown]
# The planting itself changes none of these answers. Now the edits, each beside its
# controls: changes of the margin against the planted model, in logits, with intervals
# over questions.

# %%
if ON_TOY:
    edits = {
        "tower, drop": SinkEdit(columns="tower", act="drop"),
        "tower, mean": SinkEdit(columns="tower", act="mean"),
        "language, drop": SinkEdit(columns="language", act="drop", layers="1:"),
        "language, mean": SinkEdit(
            columns="language", act="mean", at="layers", layers=(0,)
        ),
    }
    effects = {}
    for name, edit in edits.items():
        for which, one in {"sinks": edit, **edit.controls()}.items():
            change = (margins(planted, one) - whole).tolist()
            effects[name, which] = estimate_mean(change)

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for place, ((_, which), effect) in enumerate(effects.items()):
        colour = "#D55E00" if which == "sinks" else "0.5"
        axes.plot([effect.low, effect.high], [-place] * 2, color=colour)
        axes.plot(effect.estimate, -place, "o", color=colour, markersize=4)
    labels = [f"{name}: {which}" for name, which in effects]
    axes.set_yticks([-place for place in range(len(labels))], labels, fontsize=7)
    axes.axvline(0, color="0.5", linewidth=0.7)
    axes.set_xlabel("change of the true answer's margin (logits)")

    assert max(abs(e.estimate) for e in effects.values()) < 0.1
    assert all(effects[name, "sinks"].high < 0 for name in edits)
    assert all(effects["tower, drop", one].high > 0 for one in SinkEdit().controls())
    assert effects["language, drop", "like norm"].high < 0

# %% [markdown]
# All changes are below a tenth of a logit; for comparison, none of these answers turned
# when the sinks were planted. Within that, the four edits of sinks lower the margin a
# little. Of the sink of the tower no control does the same when it is dropped: the
# louder token helps, a little. Dropping that of the language model does no more than
# dropping a column that is like it in norm. Many intervals are looked at here, and all
# are of one toy. Over three toys and more scenes, with an allowance for how many
# comparisons there are, none of it is left: `docs/sinks-by-kind.md`.
#
# Sinks can also be moved (`act="move"`), swapped between two images (`act="swap"`), and
# edited before the projector (`at="vision"`), where this planting can be undone:

# %%
undo = SinkEdit(columns="tower", act="scale", factor=1 / TIMES, at="vision")
undo = undo.fit(planted, image, QUESTION)
undone = find_sinks(eah.edit(planted, undo), image, QUESTION)
before = found.norms[0, 0, IN_TOWER].item()
after = undone.norms[0, 0, IN_TOWER].item()
print(f"norm entering the decoder: {after:.4f}, unplanted {before:.4f}")
if ON_TOY:
    assert abs(after - before) < 1e-3 * before
    assert not undone.mask("tower").any()
    assert undone.mask("language").sum() == 1

# %% [markdown]
# ## What do they say?
#
# Two questions, again apart for each kind. What do heads *take* from them for an
# object's logit, and what would the unembedding *read* off them?

# %%
taken = attribute_patches(planted, image, QUESTION, objects=["flower"])
by_kind = seen.label(taken.frame()).groupby("kind")["plain"].sum()
by_kind.round(4)

# %%
if ON_TOY:
    assert by_kind[["tower", "language"]].abs().max() < 0.01

# %% [markdown]
# Heads take less than 0.01 of a logit directly from either of the two. That is about
# what heads do with them. What stands in them, the lens reads: here behind layer 3, and
# the same for another scene, to see how far it depends on the picture.

# %%
other = span.columns[40]
read = {}
for number, one in enumerate(scenes[:2]):
    lens = eah.logit_lens(
        planted,
        one.pil(),
        QUESTION,
        objects=["flower", "boat", "tree", "cup", "fish"],
        positions=[IN_TOWER, IN_LANGUAGE, other],
    )
    table = lens.frame()
    at_depth = table.query("place == 'image' and layer == 3")
    read[number] = at_depth.pivot(index="object", columns="read_at", values="logit")
names = {IN_TOWER: "tower", IN_LANGUAGE: "language", other: "no sink"}
print("read off behind layer 3, in logits:")
print(read[0].rename(columns=names).round(2))
apart = (read[0] - read[1]).abs().mean().rename(names)
print("how far two scenes differ there, on average:")
print(apart.round(3))
if ON_TOY:
    assert apart["language"] < 0.01 < 1 < apart["no sink"] < apart["tower"]

# %% [markdown]
# The sink of the language model says the same whatever the picture is: the norm of the
# layer that reads it leaves one dimension, and that is the one we set. The sink of the
# tower is the token it was, only louder: of the three it depends on the picture most.
# This is how the two kinds are planted here. In a trained model, where neither is by
# construction, the same few lines ask which is which.
#
# ## The third kind
#
# Some models have sinks that are no tokens: a parameter of each head that takes part in
# the softmax, as in gpt-oss. A tiny random model of that family has them. We turn one
# of them up by hand:

# %%
hf_model = tiny_lvlm("internvl_gpt_oss")
learned = eah.wrap(hf_model, tiny_processor("internvl_gpt_oss"))
before = find_sinks(learned, random_image(), "Is there a cat?").learned_frame()
sinks = hf_model.get_submodule("model.language_model.layers.1.self_attn").sinks
with torch.no_grad():
    sinks[2] = 20.0
after = find_sinks(learned, random_image(), "Is there a cat?").learned_frame()
after.assign(before=before["mass"]).round(3)

# %%
mass = after.set_index("name")["mass"]
assert mass["L1H2"] > 0.999 > mass.drop("L1H2").max()
assert before["mass"].min() > 0
assert find_sinks(learned, random_image(), "Is there a cat?").mask("none").any()

# %% [markdown]
# All heads of this family lose a share of their attention to a parameter, and L1H2 now
# loses all of it: it reads nothing. No column shows it. `learned_frame` does, and where
# the package patches such heads the parameter keeps its share.
#
# ## What this does not show
#
# - That tower sinks are useful and language sinks are not. It has been claimed of large
#   models. Ours were planted in a model that was trained without any, so that they can
#   neither help it nor stand for anything.
# - That the toy has no sinks under every definition. Thresholds are in `SinkRule`, and
#   `sensitivity()` says what others would find.
# - One twin, two sinks, one toy. A real checkpoint has its own: run this with another
#   `MODEL`, and leave out the planting.
#
# ## Exercises
#
# 1. Plant the tower's sink on a patch that shows the flower, and look at
#    `attribute_patches` by kind again. Does it say more now?
# 2. Plant the massive dimension in layer 5 instead. From which layer on do donors by
#    `columns="language"` exist?
