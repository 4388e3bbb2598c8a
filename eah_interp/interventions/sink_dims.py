"""The dimensions in which a language model's sink tokens are massively activated."""

from typing import Any

import nnsight
import pandas as pd
import torch

from eah_interp.lvlm.anatomy import envoy_at, walk_sites
from eah_interp.lvlm.worker import prompt_of_worker


def find_sink_dims(
    model: Any, images: object, prompts: object = None, *, k: int = 10
) -> pd.DataFrame:
    """List the dimensions in which the first token is most massively activated.

    Sink dimensions belong to the language model and are the same at its first token
    (BOS) and at the image's sinks (Kang et al., arXiv:2503.03321, section 4). Measured
    is `|x[d]| / rms(x)` at each item's first token, where the residual stream enters
    each layer that attends. A dimension that is a sink's stands far above the rest, in
    all layers but the first and the last: the paper's threshold is 20. A model may
    have none.

    Args:
        model: An LVLM.
        images: An image or images.
        prompts: A prompt or prompts; "Describe the image." when None.
        k: How many dimensions to list.

    Returns:
        Columns `dim`, `activation` (median over layers and items) and `layers` (share
        of layers and items in which it is 20 or more), largest first.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> find_sink_dims(eah.load(), random_image(), k=3).columns.tolist()
        ['dim', 'activation', 'layers']
    """
    sites = list(walk_sites(model.anatomy))
    encoding = model.encode(images, prompts)
    found: list[Any] = []
    with torch.no_grad(), model.trace(**encoding) as tracer:
        found = nnsight.save([])
        tokens = prompt_of_worker(model).token_mask
        first = tokens.float().argmax(-1)
        for site in sites:
            stream = envoy_at(model, site.layer_path).input
            x = stream[torch.arange(len(stream)), first].float()
            found.append(x.abs() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        tracer.stop()
    values = torch.stack([x.cpu() for x in found]).flatten(0, 1)
    table = pd.DataFrame(
        {
            "dim": range(values.shape[1]),
            "activation": values.median(0).values.numpy(),
            "layers": (values >= 20).float().mean(0).numpy(),
        }
    )
    ordered = table.sort_values("activation", ascending=False, kind="stable")
    return ordered.head(k).reset_index(drop=True)
