"""Every public function that computes, asked of one model: for comparison of two."""

import torch

import eah_interp as eah
from eah_interp.attribution import (
    ablate_heads,
    attribute_patches,
    attribute_recipients,
    read_patterns,
    score_broadcast,
    trace_mediators,
)
from eah_interp.interventions import find_sink_dims
from eah_interp.testing import random_image

IMAGE, PROMPT = random_image(), "Is there a"
ASKED = {"objects": ["boat"]}


def patched_logits(model, settings):
    """Trace a prompt with an intervention."""
    with torch.no_grad(), model.trace(IMAGE, PROMPT):
        eah.intervene(model, settings)
        logits = model.output.logits.save()
    return logits


def measure_direct(model):
    """Measure what reads norms, output projections and the unembedding."""
    patch = eah.EAH()
    heads = eah.attribute_heads(model, IMAGE, PROMPT, patch=patch, **ASKED)
    patches = attribute_patches(model, IMAGE, PROMPT, **ASKED)
    lens = eah.logit_lens(model, IMAGE, PROMPT, patch=patch, **ASKED)
    return {
        "direct effects": heads.plain.heads,
        "direct effects, patched": heads.patched.heads,
        "direct effects of blocks": heads.plain.blocks,
        "constants": heads.plain.bias,
        "image tokens": patches.plain.patches,
        "lens": lens.plain.logit,
        "lens, patched": lens.patched.logit,
    }


def measure_runs(model):
    """Measure what runs the model, plain and patched."""
    sinks = eah.score_sinks(model, IMAGE, PROMPT)
    batch = model.encode([IMAGE, random_image(1)], [PROMPT, "Is there a cat ?"])
    with torch.no_grad(), model.trace(**batch):
        logits = model.output.logits.save()
    ids = eah.edit(model, eah.EAH()).generate(
        **model.encode(IMAGE, PROMPT), max_new_tokens=3, do_sample=False
    )
    patched = eah.patch_heads(model, IMAGE, PROMPT, source=eah.EAH(), **ASKED)
    dims = find_sink_dims(model, [IMAGE], [PROMPT])
    patterns = read_patterns(model, IMAGE, PROMPT, heads=[(1, 0)])
    return {
        "plain": logits,
        "EAH": patched_logits(model, eah.EAH()),
        "PAI": patched_logits(model, eah.PAI(layers=(1,))),
        "VAR": patched_logits(model, eah.VAR(layers=(1,), sink_dims=(1, 2))),
        "ablation": patched_logits(model, eah.Ablation(heads=((1, 0),))),
        "sinks": sinks.density,
        "text": ids.float(),
        "patched heads": patched.effects,
        "ablated heads": ablate_heads(model, IMAGE, PROMPT, **ASKED).effects,
        "recipients": attribute_recipients(model, IMAGE, PROMPT, **ASKED).effects,
        "mediators": trace_mediators(model, IMAGE, PROMPT, **ASKED).restored,
        "sink dims": torch.tensor(dims["activation"].to_numpy()),
        "patterns": patterns.plain.rows,
        "broadcast": score_broadcast(model, IMAGE, PROMPT).plain.scores,
    }


def measure_gradients(model):
    """Measure what differentiates the model."""
    rough = eah.approximate_heads(
        model, IMAGE, PROMPT, source=eah.EAH(), check=2, **ASKED
    )
    patches = attribute_patches(
        model, IMAGE, PROMPT, method="attention_gradient", **ASKED
    )
    return {"gradients": rough.approximate, "of image tokens": patches.plain.patches}


def assert_alike(found, expected, *, share):
    """Check that two models were measured alike, up to a share of the largest."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        size = values[values.isfinite()].abs().max().clamp(min=1e-3)
        error = (found[name] - values)[values.isfinite()].abs().max()
        assert error <= share * size, f"{name}: {error / size:.2g}"
