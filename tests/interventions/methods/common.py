"""A slow decoder for methods of other papers: scores and patterns in plain loops.

Plain transformers, in eager attention, with each attention call of the decoder handed
to an oracle, which changes whole patterns row by row. Scores are computed anew from
queries and keys; a change of scores is made on the pattern, whatever mask, bias or
learned sink has gone into it: adding `d` to scores multiplies weights by `exp(d)`, and
what is left of a row (the sink's share) keeps its weight before all is divided by the
sum.
"""

import itertools
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import eah_interp as eah
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.testing import FAMILIES, tiny_lvlm, tiny_processor
from tests.oracle_forward import decoder_attentions, visibility
from tests.tiny_families import (
    CORE,
    PICTURES,
    QUESTIONS,
    attention_of,
    encode,
    measure_gap,
    share_model,
    share_plain,
)

APART = ("minimax_m3_vl",)
"""Families whose rows transformers itself reads differently in a batch."""


def sweep(*fast, without=()):
    """List the families at the core; but for the named ones, in `make check-all`."""
    return [
        name if name in fast else pytest.param(name, marks=pytest.mark.slow)
        for name in CORE
        if name not in without
    ]


STEPS = 3
TOLERANCE = 1e-4
"""Of the largest logit, in float32: SDPA and eager attention are 3e-6 apart here."""
GREEDY = {
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "output_logits": True,
    "return_dict_in_generate": True,
    "do_sample": False,
}


@dataclass
class Call:
    """One attention call, written out.

    Attributes:
        layer: The decoder layer.
        step: How many calls the layer had before.
        scores: `[batch head query key]`: scaled and capped, no mask, no bias.
        pattern: The same shape; an oracle changes it in place.
        visible: `[batch 1|head query key]`: MiniMax shows each head blocks of its own.
        image: `[batch key]`.
        values: `[batch head key d_value]`.
    """

    layer: int
    step: int
    scores: Tensor
    pattern: Tensor
    visible: Tensor
    image: Tensor
    values: Tensor

    def sees(self, item, head, row):
        """List the image columns that a head sees from a row."""
        own = head if self.visible.shape[1] > 1 else 0
        seen = self.visible[item, own, row] & self.image[item]
        return seen.nonzero().flatten().tolist()

    def output(self, item, head):
        """What a head returns with its pattern as it is, `[query d_value]`."""
        return self.pattern[item, head] @ self.values[item, head]

    def add(self, item, head, row, extra):
        """Add numbers to a row's scores: `extra` by column."""
        old = self.pattern[item, head, row]
        new = old.clone()
        for column, number in extra.items():
            new[column] = old[column] * torch.exp(torch.as_tensor(number))
        rest = 1 - old.sum()
        self.pattern[item, head, row] = new / (new.sum() + rest)


@dataclass
class Oracle:
    """A method in loops.

    Attributes:
        image: `[batch position]`, of the prompt.
        token: The same shape; False at padding.
        layers: Where it acts.
        steps: As in the settings.
    """

    image: Tensor
    token: Tensor
    layers: tuple
    steps: str = "all"
    seen: dict = field(default_factory=dict)
    changed: int = 0

    def read(self, call):
        """Change one call: all rows that a word is read from."""
        if call.layer not in self.layers or (call.step and self.steps == "prefill"):
            return
        for item in range(len(call.pattern)):
            for row in self.rows_of(call, item):
                before = call.pattern[item, :, row].clone()
                self.change(call, item, row)
                self.changed += int(not torch.equal(before, call.pattern[item, :, row]))

    def rows_of(self, call, item):
        if call.step:
            return [0]
        return [max(k for k in range(self.image.shape[1]) if self.token[item, k])]

    def rows_of_all(self, call, item):
        """Every row of a token, padding left out."""
        if call.step:
            return [0]
        return [k for k in range(self.image.shape[1]) if self.token[item, k]]

    def change(self, call, item, row):
        raise NotImplementedError


@contextmanager
def slow_decoder(hf_model, oracle):
    """Hand each attention call of a decoder to an oracle."""
    attentions = decoder_attentions(hf_model)
    layer_of = {id(module): layer for layer, module in attentions.items()}
    first = next(iter(attentions.values()))
    modelling = sys.modules[type(first).__module__]
    plain = modelling.eager_attention_forward
    assert first.config._attn_implementation == "eager"

    def attend(module, query, key, value, attention_mask, **settings):
        output, pattern = plain(module, query, key, value, attention_mask, **settings)
        layer = layer_of.get(id(module))
        if layer is None:  # a vision tower's attention in the same modelling module
            return output, pattern
        groups, n_heads = query.shape[1] // key.shape[1], query.shape[1]
        scale = settings.get("scaling") or module.scaling
        scores = torch.zeros_like(pattern)
        for item in range(len(query)):
            for head in range(n_heads):
                keys = key[item, head // groups, : pattern.shape[-1]]
                scores[item, head] = query[item, head] @ keys.T * scale
        cap = settings.get("softcap")
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        n_keys, step = pattern.shape[-1], oracle.seen.get(layer, 0)
        # A sliding window's cache has dropped the first keys.
        image = pad(oracle.image, (0, step))[:, -n_keys:]
        call = Call(
            layer=layer,
            step=step,
            scores=scores,
            pattern=pattern.clone(),
            visible=visibility(attention_mask, pattern),
            image=image,
            values=value.repeat_interleave(groups, 1)[:, :, :n_keys],
        )
        oracle.seen[layer] = call.step + 1
        oracle.read(call)
        mixed = [
            torch.stack([call.output(item, head) for item in range(len(query))])
            for head in range(n_heads)
        ]
        return torch.stack(mixed, 2).to(output.dtype), call.pattern

    modelling.eager_attention_forward = attend
    try:
        yield oracle
    finally:
        modelling.eager_attention_forward = plain


@cache
def share_eager(family):
    """Wrap a family in eager attention, where its usual one is SDPA."""
    if attention_of(family) == "eager":
        return share_model(family)
    model = tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager")
    processed = FAMILIES[family].build_processor is not None
    return eah.wrap(model, tiny_processor(family) if processed else None)


@cache
def share_encoding(family):
    return encode(family)


@cache
def share_unpatched(family):
    """What a family generates without a patch."""
    return share_plain(family).generate(**share_encoding(family), **GREEDY)


def masks_of(family, encoding=None):
    encoding = share_encoding(family) if encoding is None else encoding
    token = image_token_id(share_plain(family).config)
    return image_mask(encoding["input_ids"], token), encoding["attention_mask"].bool()


def layers_of(family, wanted=(0, 1, 2)):
    """Keep the layers that have attention."""
    return tuple(one for one in wanted if one in share_model(family).anatomy.sites)


def check_family(family, settings, oracle, *, moves=1e-3):
    """Check that a batch generates under a patch as the slow decoder does.

    By eager attention and by SDPA: the prompt's last row and all steps, token by token,
    logit by logit.

    Args:
        family: Which tiny model.
        settings: The patch.
        oracle: A method in loops, made for the family's encoding.
        moves: How much of the largest logit has to change in some step.
    """
    encoding = share_encoding(family)
    with slow_decoder(share_plain(family), oracle):
        expected = share_plain(family).generate(**encoding, **GREEDY)
    assert oracle.changed > 0, "the oracle changed nothing: a weak test"
    plain = share_unpatched(family)
    moved = [
        measure_gap(a, b) for a, b in zip(plain.logits, expected.logits, strict=True)
    ]
    assert max(moved) > moves, f"the patch does next to nothing here: {moved}"
    models = {id(one): one for one in (share_eager(family), share_model(family))}
    for model in models.values():
        found = eah.edit(model, settings).generate(**encoding, **GREEDY)
        assert found.sequences.tolist() == expected.sequences.tolist()
        for ours, theirs in zip(found.logits, expected.logits, strict=True):
            assert measure_gap(ours, theirs) <= TOLERANCE


def check_prompt(family, settings, oracle):
    """Check that every row of a prompt, read once, is the slow decoder's."""
    encoding, model = share_encoding(family), share_model(family)
    with torch.no_grad(), slow_decoder(share_plain(family), oracle):
        expected = share_plain(family)(**encoding, use_cache=False).logits
    found = read_logits(model, settings, encoding)
    real = encoding["attention_mask"].bool()
    assert measure_gap(found[real], expected[real]) <= TOLERANCE


def read_logits(model, settings, encoding):
    with torch.no_grad(), model.trace(**encoding):
        if settings is not None:
            eah.intervene(model, settings)
        logits = model.output.logits.save()
    return logits


def check_rows_alone(family, settings, settings_of=None):
    """Check that a batch's rows are patched as each alone, in its last row's logits."""
    model, together = share_model(family), share_encoding(family)
    batch = read_logits(model, settings, together)[:, -1]
    plain = read_logits(model, None, together)[:, -1]
    for row, (picture, question) in enumerate(zip(PICTURES, QUESTIONS, strict=True)):
        alone = encode(family, [picture], [question])
        own = settings if settings_of is None else settings_of(row)
        noise = measure_gap(read_logits(model, None, alone)[0, -1], plain[row])
        found = measure_gap(read_logits(model, own, alone)[0, -1], batch[row])
        assert found <= 4 * noise + 1e-5


def columns_of(call, item, gate):
    """List the image's columns, or those behind its last."""
    images = [k for k in range(call.image.shape[1]) if call.image[item, k]]
    if gate == "image":
        return images
    last = max(images, default=-1)
    return [k for k in range(call.image.shape[1]) if k > last]


def measure_shares(call, item, row, gate):
    """Sum each head's weights on some columns, in one row."""
    columns = columns_of(call, item, gate) if gate else []
    n_heads = call.pattern.shape[1]
    return [
        sum(float(call.pattern[item, head, row, k]) for k in columns)
        for head in range(n_heads)
    ]


@cache
def split_widely(family, gate, *, over="head"):
    """Find a threshold far from every share in the prompt's last rows."""
    shares = []

    class Measure(Oracle):
        def change(self, call, item, row):
            found = measure_shares(call, item, row, gate)
            mean = [sum(found) / len(found)]
            shares.extend(mean if over == "layer" else found)

    oracle = Measure(*masks_of(family), layers_of(family))
    with torch.no_grad(), slow_decoder(share_plain(family), oracle):
        share_plain(family)(**share_encoding(family), use_cache=False)
    ordered = sorted(shares)
    gaps = [after - before for before, after in itertools.pairwise(ordered)]
    edge = len(gaps) // 4
    widest = max(range(edge, len(gaps) - edge), key=gaps.__getitem__)
    return (ordered[widest] + ordered[widest + 1]) / 2
