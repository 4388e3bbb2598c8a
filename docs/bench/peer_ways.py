"""The jobs of `peers.py` in one tool, in a process and an environment of its own.

    .venv-peers/nnterp/bin/python docs/bench/peer_ways.py nnterp    # peers.py starts it

nnterp 1.3 needs nnsight before 0.8, vlmprobe's adapters need transformers 5.3, and this
package needs later ones of both: no environment has them all. So each tool is a process
that builds the same random weights and is told which job to run; what it answers is
compared in `peers.py`. A peer's process imports nothing of this package.

Jobs are read from stdin, a line of JSON each (`{"job": ..., "measure": "time"}` or
`"peak"`), and answered on stdout in the same way.
"""

import functools
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peak_memory import measure_peak
from shaped_models import (
    FIRST_IMAGE_POSITION,
    TOKENS_PER_IMAGE,
    Shape,
    build_inputs,
    build_model,
    twin,
)
from torch import Tensor

N_LAYERS, N_TOKENS, TOKEN = 6, 624, 1234
N_EACH = 1
"""Heads of each layer that are patched where a way takes one forward for each."""
SHAPE = Shape(d_model=1024, d_mlp=2752, n_heads=16)
NARROW = Shape(d_model=64, d_mlp=128, vocab=2000, n_heads=4)

LENS = "logit of a word after each layer, last position"
PATCH = "effect of every head, taken from another image"
DIRECT = "direct effect of every head"
ROWS = "attention of the last position, every head"
SINKS = "density of vision sinks, every head"
JOBS = (LENS, PATCH, DIRECT, ROWS, SINKS)

Way = Callable[[], Tensor]
Ways = dict[str, tuple[str, Way]]
"""By job: what the tool calls it, and the run that gives its numbers."""


class Question:
    """The model, one prompt with an image, and the same prompt with another image."""

    def __init__(self, shape: Shape) -> None:
        """Build both.

        Args:
            shape: Of the model.
        """
        self.shape = shape
        self.built = build_model(
            shape, n_layers=N_LAYERS, dtype=torch.float32, device="cpu"
        )
        self.inputs = build_inputs(self.built, batch=1, n_tokens=N_TOKENS)
        noise = torch.Generator().manual_seed(1)
        pixels = torch.randn(self.inputs["pixel_values"].shape, generator=noise)
        self.source = self.inputs | {"pixel_values": pixels}

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The heads that are patched by ways that take a forward for each."""
        return [(layer, head) for layer in range(N_LAYERS) for head in range(N_EACH)]

    def columns(self, head: int) -> slice:
        """Find a head's part of what an output projection is given."""
        width = self.shape.d_model // self.shape.n_heads
        return slice(head * width, (head + 1) * width)

    def model(self, attention: str = "sdpa") -> Any:
        """Make modules of one's own around the same weights."""
        model = twin(self.built)
        model.set_attn_implementation(attention)
        return model


def find_density(pattern: Tensor) -> Tensor:
    """Score columns as `definition="visible"` does, and tell the share that are sinks.

    Args:
        pattern: `[head query key]`, of one prompt that is read causally.

    Returns:
        The share of the image's columns that get more than the uniform share, `[head]`.
    """
    n = pattern.shape[-1]
    below = torch.arange(n - 1, -1, -1)  # how many later rows see a column
    even = 1 / torch.arange(1, n + 1)
    unit = (even.sum() - even.cumsum(0)) / below
    scores = (pattern.sum(-2) - pattern.diagonal(dim1=-2, dim2=-1)) / below
    image = slice(FIRST_IMAGE_POSITION, FIRST_IMAGE_POSITION + TOKENS_PER_IMAGE)
    return (scores > unit)[:, image].float().mean(-1)


# ---- This package, and plain transformers with hooks.


def make_ours(asked: Question) -> Ways:
    """Make the ways of this package."""
    import attribution
    import lens

    import eah_interp as eah
    from eah_interp.lvlm.inputs import Encoding
    from eah_interp.testing import tiny_processor

    heads = attribution.make_ways(asked.shape, N_LAYERS)
    read = lens.make_ways(asked.shape, N_LAYERS)["logit_lens, last position"]
    model = eah.wrap(asked.model(), tiny_processor("llava"))
    n_heads = asked.shape.n_heads
    every = [(layer, head) for layer in range(N_LAYERS) for head in range(n_heads)]
    encoding = Encoding(asked.inputs)

    def read_rows() -> Tensor:
        return eah.read_patterns(model, encoding, heads=every).plain.rows[0, :, 0]

    return {
        LENS: ("`logit_lens`", lambda: read()[1:]),
        PATCH: ("`patch_heads`", heads[attribution.ALL]),
        DIRECT: ("`attribute_heads`", heads[attribution.DIRECT]),
        ROWS: ("`read_patterns`", read_rows),
        SINKS: ("`score_sinks`", lambda: eah.score_sinks(model, encoding).density[0]),
    }


def make_by_hand(asked: Question) -> Ways:
    """Make the ways of plain transformers: hooks, and eager attention for patterns."""
    import attribution
    import lens

    heads = attribution.make_ways(asked.shape, N_LAYERS, by_hand=N_EACH)
    hooks = lens.make_ways(asked.shape, N_LAYERS)["by hand, last position"]
    eager = asked.model("eager")

    @torch.no_grad()
    def see() -> tuple[Tensor, ...]:
        options = {"use_cache": False, "logits_to_keep": 1, "output_attentions": True}
        patterns: tuple[Tensor, ...] = eager(**asked.inputs, **options).attentions
        return patterns

    return {
        LENS: ("forward hooks", lambda: hooks()[1:]),
        PATCH: ("one forward a head, with a hook", heads[attribution.HAND]),
        DIRECT: ("one forward, with hooks", heads[attribution.DIRECT_HAND]),
        ROWS: (
            "eager, `output_attentions`",
            lambda: torch.stack([pattern[0, :, -1] for pattern in see()]),
        ),
        SINKS: (
            "eager, `output_attentions`",
            lambda: torch.stack([find_density(pattern[0]) for pattern in see()]),
        ),
    }


# ---- TransformerLens: a bridge takes the image too, its tools take what it cached.


def make_transformer_lens(asked: Question) -> Ways:
    """Make the ways of TransformerLens' bridge and its analysis tools."""
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import architecture_adapter, sources
    from transformer_lens.tools.analysis import logit_lens

    pending = [architecture_adapter.ArchitectureAdapter]
    while pending:  # for processors, which are not needed here
        kind = pending.pop()
        kind.required_libraries = []
        pending += kind.__subclasses__()
    model = asked.model("eager")
    bridge: Any = sources.build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=None
    )
    ids = asked.inputs["input_ids"]
    run = bridge.run_with_hooks

    @torch.no_grad()
    def keep(inputs: dict[str, Tensor], *ends: str) -> Any:
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        _, cache = bridge.run_with_cache(
            ids,
            names_filter=lambda name: (
                name.startswith(("blocks.", "ln_final")) and name.endswith(ends)
            ),
            logits_to_keep=1,
            **rest,
        )
        return cache

    def read(logits: Tensor) -> Tensor:
        return logits[0, -1, TOKEN]

    def read_lens() -> Tensor:
        cache = keep(asked.inputs, "hook_resid_pre", "hook_resid_post", "hook_scale")
        found = logit_lens(bridge, cache=cache, positions=-1)
        return found.readout.values[1:, 0, TOKEN]

    @torch.no_grad()
    def patch() -> Tensor:
        rest = {k: v for k, v in asked.inputs.items() if k != "input_ids"}
        # The function hands on tokens alone: the image goes in here.
        bridge.run_with_hooks = functools.partial(run, logits_to_keep=1, **rest)
        cache = keep(asked.source, "attn.hook_z")
        # get_act_patch_attn_head_out_all_pos is this for every head.
        found = patching.generic_activation_patch(
            bridge,
            ids,
            cache,
            read,
            patching.layer_head_vector_patch_setter,
            "z",
            index_df=pd.DataFrame(asked.heads, columns=["layer", "head_index"]),
        )
        return found - read(bridge.run_with_hooks(ids))

    @torch.no_grad()
    def split() -> Tensor:
        cache = keep(asked.inputs, "attn.hook_z", "hook_scale")
        stack = cache.stack_head_results(layer=-1, pos_slice=-1)
        return cache.logit_attrs(stack, tokens=TOKEN, pos_slice=-1).flatten()

    def see() -> list[Tensor]:
        cache = keep(asked.inputs, "attn.hook_pattern")
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(N_LAYERS)]
        return [cache[name][0] for name in names]

    return {
        LENS: ("`tools.analysis.logit_lens`", read_lens),
        PATCH: ("`generic_activation_patch`", patch),
        DIRECT: ("`stack_head_results`, `logit_attrs`", split),
        ROWS: (
            "`hook_pattern`",
            lambda: torch.stack([pattern[:, -1] for pattern in see()]),
        ),
        SINKS: (
            "`hook_pattern`",
            lambda: torch.stack([find_density(pattern) for pattern in see()]),
        ),
    }


# ---- nnterp: one set of names on nnsight.


def make_nnterp(asked: Question) -> Ways:
    """Make the ways of nnterp: its lens, and traces with its names."""
    from nnterp import StandardizedTransformer
    from nnterp.interventions import logit_lens
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side="left",
    )

    options = {"tokenizer": tokenizer, "allow_multimodal": True}
    model: Any = StandardizedTransformer(asked.model(), **options)
    eager: Any = StandardizedTransformer(
        asked.model("eager"), enable_attention_probs=True, **options
    )
    plain = asked.model()
    with torch.no_grad():
        streams = plain(**asked.inputs, output_hidden_states=True, logits_to_keep=1)
        last = [stream[0, -1] for stream in streams.hidden_states[1:-1]]
        read = plain.lm_head(plain.get_decoder().norm(torch.stack(last)))
        sizes = torch.cat([read, streams.logits[0]]).logsumexp(-1)

    def read_lens() -> Tensor:
        # It gives probabilities; the logit is what they are, times their sum.
        return logit_lens(model, asked.inputs)[0, :, TOKEN].log() + sizes

    @torch.no_grad()
    def patch() -> Tensor:
        with model.trace(asked.source, logits_to_keep=1):
            given = torch.cat(
                [model.attentions[i].o_proj.input for i in range(N_LAYERS)]
            ).save()
        with model.trace(asked.inputs, logits_to_keep=1):
            value = model.logits[0, -1, TOKEN].save()
        found = []
        for layer, head in asked.heads:
            columns = asked.columns(head)
            new = given[layer][..., columns]
            with model.trace(asked.inputs, logits_to_keep=1):
                model.attentions[layer].o_proj.input[..., columns] = new
                effect = (model.logits[0, -1, TOKEN] - value).save()
            found.append(effect)
        return torch.stack(found)

    @torch.no_grad()
    def read_rows() -> Tensor:
        with eager.trace(asked.inputs, logits_to_keep=1):
            rows: Tensor = torch.stack(
                [eager.attention_probabilities[i][0, :, -1] for i in range(N_LAYERS)]
            ).save()
        return rows

    @torch.no_grad()
    def score() -> Tensor:
        with eager.trace(asked.inputs, logits_to_keep=1):
            found = torch.stack(
                [
                    find_density(eager.attention_probabilities[i][0])
                    for i in range(N_LAYERS)
                ]
            ).save()
        return found  # noqa: RET504 - nnsight rewrites what a trace binds

    return {
        LENS: ("`logit_lens`", read_lens),
        PATCH: ("one trace a head", patch),
        ROWS: ("`attention_probabilities`", read_rows),
        SINKS: ("`attention_probabilities`", score),
    }


# ---- vlmprobe: a prober with its own adapter of LLaVA.


def make_vlmprobe(asked: Question) -> Ways:
    """Make the ways of vlmprobe: its prober, and its adapter for what that has not."""
    from vlmprobe import Prober

    probe, eager = Prober(asked.model()), Prober(asked.model("eager"))

    def read_lens() -> Tensor:
        found = probe.lens.logit(tokens="last_prompt").run(asked.inputs)
        return found.tensors["logits"][:, 0, TOKEN]

    def patch() -> Tensor:
        sites = [probe.spec.heads[layer] for layer in range(N_LAYERS)]
        options = {"use_cache": False, "logits_to_keep": 1}
        given = probe.adapter.run(asked.source | options, capture=sites).activations
        value = probe.adapter.run(asked.inputs | options).logits[0, -1, TOKEN]
        found = []
        for layer, head in asked.heads:
            columns, new = asked.columns(head), given[sites[layer]]

            def edit(z: Tensor, columns: slice = columns, new: Tensor = new) -> Tensor:
                z = z.clone()
                z[..., columns] = new[..., columns]
                return z

            done = probe.adapter.run(
                asked.inputs | options, interventions={sites[layer]: edit}
            )
            found.append(done.logits[0, -1, TOKEN] - value)
        return torch.stack(found)

    def split() -> Tensor:
        # Logits of every word at every position: one layer fits into memory.
        found = []
        for layer in range(N_LAYERS):
            done = probe.attention.head_logits(layers=[layer]).run(asked.inputs)
            found.append(done.tensors["head_logits"][0, 0, :, -1, TOKEN].clone())
        return torch.cat(found)

    def see() -> Tensor:
        maps = eager.attention.profile(queries="last_prompt", include_attention=True)
        return maps.run(asked.inputs).tensors["attention"][:, 0]

    return {
        LENS: ("`lens.logit`", read_lens),
        PATCH: ("one `adapter.run` a head", patch),
        DIRECT: ("`attention.head_logits`", split),
        ROWS: ("`attention.profile`", lambda: see()[:, :, -1]),
        SINKS: (
            "`attention.profile`",
            lambda: torch.stack([find_density(pattern) for pattern in see()]),
        ),
    }


TOOLS: dict[str, Callable[[Question], Ways]] = {
    "eah_interp": make_ours,
    "transformers": make_by_hand,
    "transformer-lens": make_transformer_lens,
    "nnterp": make_nnterp,
    "vlmprobe": make_vlmprobe,
}
"""By the name of the package."""


def main() -> None:
    """Build one tool's ways, and run the jobs that are asked for."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what tools print is no answer

    def answer(**said: Any) -> None:
        print(json.dumps(said), file=answers, flush=True)

    tool, *options = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shape = NARROW if "--smoke" in options else SHAPE
    try:
        ways = TOOLS[tool](Question(shape))
    except ImportError as error:
        answer(absent=str(error))
        return
    below = ["transformers", *["nnsight"] * (tool in ("eah_interp", "nnterp"))]
    packages = dict.fromkeys([tool, *below])
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            continue
    answer(jobs={job: label for job, (label, _) in ways.items()}, versions=versions)
    for line in sys.stdin:
        asked = json.loads(line)
        _, run = ways[asked["job"]]
        if asked["measure"] == "peak":
            answer(peak_bytes=measure_peak(run, device="cpu"))
            continue
        start = time.process_time()
        values = run()
        seconds = time.process_time() - start
        answer(seconds=seconds, values=values.flatten().tolist())


if __name__ == "__main__":
    main()
