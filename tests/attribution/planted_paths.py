"""Transformers built by hand, whose edges are known because nothing else has a weight.

The residual stream has a dimension for each thing that is said. A large constant keeps
the norms' scale nearly the same, so that a dimension which nobody reads does next to
nothing. Half of a head's dimensions rotate with the position or not at all: what heads
look for is written into those that do not.
"""

import torch

import eah_interp as eah
from eah_interp.testing import tiny_lvlm, tiny_processor

D_HEAD, N_HEADS = 16, 4
CONSTANT, SIZE = 63, 100.0
UNIT = SIZE / 8  # what a norm divides by: the root mean square of 64 dimensions
ANSWER = 3  # the dimension that the objects' logits read, and those after it
SLOW = 2  # the first of a head's dimensions that do not rotate


class Plan:
    """A LLaVA whose decoder has no weight but those that are planted."""

    def __init__(self, n_layers):
        shape = {"n_layers": n_layers, "n_heads": N_HEADS, "d_head": D_HEAD}
        self.hf_model = tiny_lvlm("llava", **shape)
        self.processor = tiny_processor("llava")
        self.decoder = self.hf_model.model.language_model
        with torch.no_grad():
            self.decoder.embed_tokens.weight.zero_()
            self.decoder.embed_tokens.weight[:, CONSTANT] = SIZE
            self.hf_model.lm_head.weight.zero_()
            self.decoder.norm.weight.fill_(1)
            self.decoder.rotary_emb.inv_freq[SLOW:] = 0
            projector = self.hf_model.model.multi_modal_projector
            projector.linear_2.weight.zero_()
            projector.linear_2.bias.zero_()
            projector.linear_2.bias[CONSTANT] = SIZE
            for layer in self.decoder.layers:
                layer.input_layernorm.weight.fill_(1)
                layer.mlp.down_proj.weight.zero_()
                for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                    getattr(layer.self_attn, name).weight.zero_()

    def token(self, word):
        return self.processor.tokenizer(word, add_special_tokens=False)["input_ids"][-1]

    def mark(self, word, dim):
        with torch.no_grad():
            self.decoder.embed_tokens.weight[self.token(word), dim] = 1

    def show(self, dim, size):
        """Let image tokens have what the tower says in one dimension."""
        with torch.no_grad():
            projector = self.hf_model.model.multi_modal_projector
            seed = torch.Generator().manual_seed(0)
            line = torch.rand(projector.linear_2.in_features, generator=seed)
            projector.linear_2.weight[dim] = size * line

    def say(self, word, dim):
        with torch.no_grad():
            self.hf_model.lm_head.weight[self.token(word), dim] = 1

    def head(self, layer, head, *, q=(), k=(), v=(), out=()):
        """Plant a head: `(dimension of the head, of the stream, gain)` for each."""
        attention = self.decoder.layers[layer].self_attn
        first = head * D_HEAD
        with torch.no_grad():
            for name, entries in (("q", q), ("k", k), ("v", v)):
                weight = getattr(attention, f"{name}_proj").weight
                for inner, dim, gain in entries:
                    weight[first + inner, dim] = gain * UNIT
            for inner, dim, gain in out:
                attention.o_proj.weight[dim, first + inner] = gain

    def wrap(self):
        return eah.wrap(self.hf_model, self.processor)


TWO_HOPS = {
    "image -> L0H0.v",
    "L0H0 -> L1H0.v",
    "L0H0 -> L2H1.q",
    "L1H0 -> L2H0.v",
    "L1H0 -> L2H2.k",
    "L2H0 -> logit",
    "L2H1 -> logit",
    "L2H2 -> logit",
}

SILENT, UNHEARD = "L1H3", "L1H2"
"""Decoys: one reads the image and writes nothing; one writes what nobody reads."""


def build_two_hops():
    """Build a way from the image to the word of two hops, by value, query and key.

    `L0H0` copies what is shown to every token. `L1H0` copies that on. In the last
    layer `L2H0` writes what `L1H0` copied (by its values); `L2H1` looks for the word
    "boat" as strongly as `L0H0` says (by its query); `L2H2` looks where `L1H0` has
    written (by its keys). All three write the word "cat".
    """
    plan = Plan(3)
    shown, first, second, word, unread = 0, 1, 2, 10, 20
    plan.show(shown, 0.2)
    plan.mark(" boat", word)
    plan.say(" cat", ANSWER)
    copy = {"v": [(8, shown, 1.0)], "out": [(8, first, 2.0)]}
    plan.head(0, 0, **copy)
    plan.head(1, 0, v=[(8, first, 1.0)], out=[(8, second, 2.0)])
    plan.head(1, 2, v=[(8, shown, 1.0)], out=[(8, unread, 0.2)])
    plan.head(1, 3, v=[(8, shown, 1.0)])
    plan.head(2, 0, v=[(8, second, 1.0)], out=[(8, ANSWER, 1.0)])
    finds = {"v": [(8, word, 1.0)], "out": [(8, ANSWER, 8.0)]}
    plan.head(2, 1, q=[(SLOW, first, 2.0)], k=[(SLOW, word, 6.0)], **finds)
    plan.head(2, 2, q=[(SLOW, CONSTANT, 1 / SIZE)], k=[(SLOW, second, 6.0)], **finds)
    return plan.wrap()


INDUCTION = {
    "text -> L0H0.v",
    "text -> L1H0.v",
    "L0H0 -> L1H0.k",
    "L1H0 -> logit",
}

WORDS = (" cat", " boat", " dog", " near")


def build_induction():
    """Build an induction circuit: what came after this word before comes again.

    `L0H0` looks one token back and writes which word was there; `L1H0` looks for the
    token whose last word was the present one, and writes its word.
    """
    plan = Plan(2)
    own, before, n = 10, 20, len(WORDS)
    for index, word in enumerate(WORDS):
        plan.mark(word, own + index)
        plan.say(word, ANSWER + index)
    # one step back: a key that is the query turned by one position
    turn = plan.decoder.rotary_emb.inv_freq[:SLOW]
    query, key = [], []
    half = D_HEAD // 2
    for pair in range(SLOW):
        query.append((pair, CONSTANT, 40 / SIZE))
        key.append((pair, CONSTANT, float(turn[pair].cos()) * 2 / SIZE))
        key.append((pair + half, CONSTANT, float(turn[pair].sin()) * 2 / SIZE))
    words = range(n)
    plan.head(
        *(0, 0),
        q=query,
        k=key,
        v=[(8 + i, own + i, 1.0) for i in words],
        out=[(8 + i, before + i, 1.0) for i in words],
    )
    plan.head(
        *(1, 0),
        q=[(SLOW + i, own + i, 8.0) for i in words],
        k=[(SLOW + i, before + i, 8.0) for i in words],
        v=[(8 + i, own + i, 1.0) for i in words],
        out=[(8 + i, ANSWER + i, 2.0) for i in words],
    )
    return plan.wrap()
