"""Time exact path patching into one layer against one forward pass for every edge.

    python docs/bench/paths.py            # a LLaVA-shaped model, 624 tokens
    python docs/bench/paths.py --smoke    # a few edges, one repeat

Both put heads' outputs on another image into single queries, keys and values of one
layer. The other way is given what senders change and what receivers make of it, which
it would need two more passes for: what is timed of it is one forward pass an edge, in
which one hook sets one head's query, key or value. Ways run in turn; ratios are medians
of the repeats' own.
"""

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from prefill import name_device
from shaped_models import FIRST_IMAGE_POSITION, TOKENS_PER_IMAGE, Shape, build_model
from torch import Tensor, nn

import eah_interp as eah
from eah_interp.attribution import Case, patch_paths
from eah_interp.attribution.readouts import read_tokens
from eah_interp.lvlm.inputs import Encoding

N_TOKENS = 624
SHAPE = Shape(d_model=256, d_mlp=688, vocab=1064, n_heads=16)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def ask(model: eah.LVLM, seed: int) -> Case:
    """Ask for one token after a prompt of LLaVA's length, of a random image."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (1, N_TOKENS), generator=generator)
    image = slice(FIRST_IMAGE_POSITION, FIRST_IMAGE_POSITION + TOKENS_PER_IMAGE)
    ids[ids == model.anatomy.image_token_id] = 3
    ids[:, image] = model.anatomy.image_token_id
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(seed))
    encoding = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
    }
    last = N_TOKENS - 1
    aims = [("a", 0, last, "a", [(last, 7, 1.0)])]
    return Case(Encoding(encoding), None, read_tokens(aims))


def forward_each(model: eah.LVLM, case: Case, layer: int, n_edges: int) -> None:
    """Run one forward pass for each edge, with one head's query set by a hook."""
    plain = model._module
    projection = plain.get_submodule(f"{model.anatomy.layers}.{layer}.self_attn.q_proj")
    width = model.anatomy.d_head
    for edge in range(n_edges):
        columns = slice(edge % 16 * width, (edge % 16 + 1) * width)

        def change(
            module: nn.Module, args: Any, output: Tensor, columns: slice = columns
        ) -> Tensor:
            del module, args
            output = output.clone()
            output[..., columns] *= 1.1
            return output

        handle = projection.register_forward_hook(change)
        with torch.no_grad():
            plain(**case.inputs, use_cache=False, logits_to_keep=1)
        handle.remove()


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    layers: int = 6,
    edges: int = 96,
    threads: int = 1,
    smoke: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--smoke", help="A few edges, one repeat.")
    ] = False,
) -> None:
    """Time both ways into each of some layers, and print the ratios."""
    torch.set_num_threads(threads)
    hf_model = build_model(SHAPE, n_layers=layers, dtype=torch.float32, device="cpu")
    model = eah.wrap(hf_model)
    case, other = ask(model, 0), ask(model, 1)
    n_senders = (16 if smoke else edges) // 16
    print(f"{name_device('cpu')}, {threads} threads, {N_TOKENS} tokens")
    for layer in [layers - 1] if smoke else [layers - 1, layers // 2, 1]:
        senders = [f"L0H{head}" for head in range(n_senders)]
        receivers = [f"L{layer}H{head}.q" for head in range(16)]

        def ours(
            senders: list[str] = senders, receivers: list[str] = receivers
        ) -> None:
            patch_paths(
                model,
                case,
                source_images=other,
                senders=senders,
                receivers=receivers,
                batch_size=16,
            )

        n_edges = len(senders) * len(receivers)
        ratios = []
        for _ in range(1 if smoke else repeats):
            start = time.process_time()
            ours()
            middle = time.process_time()
            forward_each(model, case, layer, n_edges)
            end = time.process_time()
            ratios.append((end - middle) / (middle - start))
        print(
            f"into layer {layer} of {layers}, {n_edges} edges: one forward an edge "
            f"takes {statistics.median(ratios):.2f} x as long {ratios}"
        )


if __name__ == "__main__":
    app()
