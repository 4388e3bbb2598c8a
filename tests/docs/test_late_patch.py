"""What troubleshooting says of a late patch holds in a model's first trace too."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor


def test_a_late_patch_is_refused_in_the_first_trace_of_a_model():
    fresh = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))

    def too_late():
        with torch.no_grad(), fresh.trace(random_image(), "a cat ?"):
            fresh.output.logits.save()
            eah.intervene(fresh, eah.EAH())

    with pytest.raises(UnsupportedError, match="layer 1 has already run"):
        too_late()
