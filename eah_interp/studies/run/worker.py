"""A worker of a study: a process of its own that holds a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from eah_interp.errors import ModelError
from eah_interp.studies.plan.conditions import Condition
from eah_interp.studies.plan.source import ModelSource
from eah_interp.studies.run.manifest import Manifest, hash_weights, list_versions
from eah_interp.studies.run.work import Batch, run_batch, score_batch


@dataclass(frozen=True)
class Shipment:
    """A model as it can be sent: how to build it, and its weights as safetensors.

    Attributes:
        kind: Its class in transformers.
        config: Its configuration.
        generation: Its defaults of `generate`.
        weights: Parameters and buffers.
        processor: Its processor.
        device: Type of the device it runs on.
        image_token_id: The image token's id.
    """

    kind: type
    config: Any
    generation: Any
    weights: bytes
    processor: Any
    device: str
    image_token_id: int | None

    @classmethod
    def of(cls, model: Any) -> "Shipment":
        """Pack an LVLM that is in memory."""
        from safetensors.torch import save

        module = model._module
        state = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in module.state_dict().items()
        }
        return cls(
            kind=type(module),
            config=module.config,
            generation=module.generation_config,
            weights=save(state),
            processor=model.processor,
            device=torch.device(model.device).type,
            image_token_id=getattr(module.config, "image_token_id", None),
        )

    def load(self) -> Any:
        """Build the LVLM again."""
        from safetensors.torch import load

        from eah_interp.lvlm import wrap

        state = load(self.weights)
        attention = self.config.get_text_config()._attn_implementation
        module = self.kind._from_config(  # type: ignore[attr-defined]
            self.config, attn_implementation=attention
        )
        module.load_state_dict(state, assign=True)
        module.tie_weights()
        module.generation_config = self.generation
        module = module.eval().to(self.device)
        token = self.image_token_id
        return wrap(module, self.processor, verify=False, image_token_id=token)


class Worker:
    """A model, and what is asked of it.

    Attributes:
        model: The model.

    Raises:
        ModelError: If its weights or packages are not the study's.
    """

    def __init__(self, source: ModelSource | Shipment, manifest: Manifest) -> None:
        found = list_versions()
        if found != dict(manifest.versions):
            msg = (
                f"a worker has other packages: expected {dict(manifest.versions)}, got "
                f"{found}; install the same versions everywhere"
            )
            raise ModelError(msg)
        self.model = source.load()
        weights = hash_weights(self.model._module)
        if weights != manifest.weights:
            msg = (
                f"a worker loaded other weights: expected {manifest.weights[:12]}, got "
                f"{weights[:12]}; give the study no source, so that they are sent"
            )
            raise ModelError(msg)

    def is_ready(self) -> bool:
        """Whether the model is loaded; it is once this is answered."""
        return True

    def run(
        self,
        batch: Batch,
        condition: Condition | None,
        decoding: Mapping[str, Any],
        seed: int,
    ) -> pd.DataFrame:
        """Run a batch under a condition, or score its sinks if there is none."""
        if condition is None:
            return score_batch(self.model, batch)
        return run_batch(self.model, batch, condition, decoding=decoding, seed=seed)
