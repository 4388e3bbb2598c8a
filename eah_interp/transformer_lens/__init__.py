"""EAH beside nnsight: the same interventions as TransformerLens hooks.

    bridge = to_bridge(model)                       # shares the LVLM's weights
    inputs = model.encode(image, prompt)
    hooks = eah_hooks(bridge, EAH(), inputs=inputs)
    logits = bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=hooks, ...)

Needs `pip install "eah-interp[lens]"`.
"""

from eah_interp.transformer_lens.bridges import to_bridge as to_bridge
from eah_interp.transformer_lens.hooks import EAHHooks as EAHHooks
from eah_interp.transformer_lens.hooks import eah_hooks as eah_hooks
from eah_interp.transformer_lens.sinks import score_sinks as score_sinks
