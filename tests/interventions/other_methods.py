"""Slow oracles of PAI, VAR and head ablations, from docs/method.md, in plain loops."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import eah_interp as eah
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle_forward import decoder_attentions

IMAGES = [random_image(seed) for seed in (0, 1, 2)]
PROMPTS = ["is there a cat ?", "what ?", "is the dog near the tree or the boat ?"]
BACKENDS = [("eager", 4), ("sdpa", 2), ("sdpa", 1)]
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4}
NEW = {**GREEDY, "do_sample": False}


def make(attention, n_kv_heads):
    return tiny_lvlm("llava", n_kv_heads=n_kv_heads, attn_implementation=attention)


def wrapped(attention, n_kv_heads):
    return eah.wrap(make(attention, n_kv_heads), tiny_processor("llava"))


def masks_of(model, encoding):
    image = encoding["input_ids"] == model.config.image_token_id
    return image, encoding["attention_mask"].bool()


def logits_of(model, settings, images=IMAGES, prompts=PROMPTS, **options):
    with torch.no_grad(), model.trace(images, prompts):
        if settings is not None:
            eah.intervene(model, settings, **options)
        logits = model.output.logits.save()
    return logits


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@dataclass
class OraclePatterns:
    """An `edit_pattern` that rewrites one row at a time; a cached step has one row."""

    image: torch.Tensor
    token: torch.Tensor
    layers: tuple
    steps: str = "all"
    seen: set = field(default_factory=set)

    def __call__(self, layer, pattern, visible):
        if layer not in self.layers:
            return pattern
        step = layer in self.seen
        if step and self.steps == "prefill":
            return pattern
        if not step:
            self.seen.add(layer)
            self.learn(layer, pattern)
        new = pattern.clone()
        n_batch, n_heads, n_rows, n_keys = pattern.shape
        width = self.image.shape[1]
        for item in range(n_batch):
            image = [k for k in range(width) if self.image[item, k]]
            for row in range(n_rows):
                own = n_keys - 1 if step else row
                if not step and not self.token[item, row]:
                    continue
                sees = [k for k in range(n_keys) if visible[item, 0, row, k]]
                for head in range(n_heads):
                    where = (layer, item, head, own)
                    old = pattern[item, head, row]
                    found = self.row(where, old, image, sees)
                    if found is not None:
                        new[item, head, row] = found
        return new

    def learn(self, layer, pattern):
        pass


@dataclass
class OracleAblation(OraclePatterns):
    heads: tuple = ()
    how: str = "zero"
    means: dict = field(default_factory=dict)

    def learn(self, layer, pattern):
        for item in range(len(pattern)):
            self.means[layer, item] = pattern[item][:, self.token[item]].mean(1)

    def row(self, where, old, image, sees):
        layer, item, head, own = where
        if (layer, head) not in self.heads:
            return None
        new = torch.zeros_like(old)
        if self.how == "mean":
            mean = self.means[layer, item][head]
            new[: len(mean)] = mean
        elif self.how == "uniform":
            pictures = [k for k in image if k in sees]
            if not pictures:
                return None
            new[pictures] = 1 / len(pictures)
        elif self.how == "previous":
            before = [k for k in sees if k < own]
            if not before:
                return None
            new[max(before)] = 1
        elif self.how == "knockout":
            words = [k for k in sees if k not in image]
            if words:
                new[words] = old[words] / old[words].sum()
        return new


@dataclass
class OracleVAR(OraclePatterns):
    hf_model: object = None
    var: object = None
    sinks: dict = field(default_factory=dict)
    streams: dict = field(default_factory=dict)
    changed: int = 0

    @contextmanager
    def watching(self):
        def keep(index):
            def hook(_, args):
                self.streams.setdefault(index, args[0])

            return hook

        layers = self.hf_model.get_decoder().layers
        hooks = [
            layer.register_forward_pre_hook(keep(index))
            for index, layer in enumerate(layers)
        ]
        yield self
        for hook in hooks:
            hook.remove()

    def learn(self, layer, pattern):
        x = self.streams[layer].double()
        for item in range(len(pattern)):
            found = []
            for place in range(x.shape[1]):
                vector = x[item, place]
                rms = vector.pow(2).mean().sqrt()
                phi = max(abs(vector[d]) / rms for d in self.var.sink_dims)
                if phi >= self.var.tau and self.token[item, place]:
                    found.append(place)
            self.sinks[layer, item] = found

    def row(self, where, old, image, _):
        layer, item, _, own = where
        if own in image:
            return None
        sinks = self.sinks[layer, item]
        picture_sinks = [k for k in image if k in sinks]
        rest = [k for k in image if k not in sinks]
        if self.var.lone_sinks == "kept" and not picture_sinks:
            return None
        looks, seeing = old[image].sum(), old[rest].sum()
        if looks < self.var.min_image or seeing / looks < self.var.rho:
            return None
        self.changed += 1
        new = old.clone()
        new[sinks] = (1 - self.var.share) * old[sinks]
        budget = self.var.share * old[sinks].sum()
        new[rest] = old[rest] + budget * old[rest] / seeing
        return new


@contextmanager
def oracle_pai(hf_model, image, token, *, alpha, layers, steps="all"):
    """Attend in plain loops, with PAI's line between the scores and the softmax."""
    attentions = decoder_attentions(hf_model)
    layer_of = {id(module): layer for layer, module in attentions.items()}
    modelling = sys.modules[type(attentions[0]).__module__]
    plain = modelling.eager_attention_forward

    def attend(module, query, key, value, attention_mask, **settings):
        if id(module) not in layer_of:
            return plain(module, query, key, value, attention_mask, **settings)
        output = torch.zeros(*query.shape[:3], value.shape[-1]).transpose(1, 2)
        groups, n_rows = query.shape[1] // key.shape[1], query.shape[2]
        step = n_rows == 1
        for item in range(len(query)):
            last = max(k for k in range(image.shape[1]) if token[item, k])
            for head in range(query.shape[1]):
                keys, values = key[item, head // groups], value[item, head // groups]
                scores = query[item, head] @ keys.T * settings["scaling"]
                boosted = layer_of[id(module)] in layers
                if boosted and not (step and steps == "prefill"):
                    row = 0 if step else last
                    for k in range(image.shape[1]):
                        if image[item, k]:
                            scores[row, k] += alpha * abs(scores[row, k])
                if attention_mask is not None:
                    scores = scores + attention_mask[item, 0, :, : keys.shape[0]]
                output[item, :, head] = scores.softmax(-1) @ values
        return output, None

    modelling.eager_attention_forward = attend
    try:
        yield
    finally:
        modelling.eager_attention_forward = plain
