"""Which heads move which object: attribution to object-token logits."""

from eah_interp.attribution.ablation import ablate_heads as ablate_heads
from eah_interp.attribution.cases import Case as Case
from eah_interp.attribution.cases import pose as pose
from eah_interp.attribution.direct import attribute_heads as attribute_heads
from eah_interp.attribution.gradient import approximate_heads as approximate_heads
from eah_interp.attribution.head_approximation import (
    HeadApproximation as HeadApproximation,
)
from eah_interp.attribution.head_attribution import HeadAttribution as HeadAttribution
from eah_interp.attribution.head_patching import HeadPatching as HeadPatching
from eah_interp.attribution.lens import logit_lens as logit_lens
from eah_interp.attribution.lens_map import LogitLens as LogitLens
from eah_interp.attribution.mediation import trace_mediators as trace_mediators
from eah_interp.attribution.mediators import Mediation as Mediation
from eah_interp.attribution.patching import patch_heads as patch_heads
from eah_interp.attribution.picture_map import PictureAttribution as PictureAttribution
from eah_interp.attribution.recipient_attribution import (
    RecipientAttribution as RecipientAttribution,
)
from eah_interp.attribution.recipients import (
    attribute_recipients as attribute_recipients,
)
from eah_interp.attribution.relevance import attribute_patches as attribute_patches
