"""Which heads move which object: attribution to object-token logits."""

from eah_interp.attribution.cases.pose import Case as Case
from eah_interp.attribution.cases.pose import pose as pose
from eah_interp.attribution.direct.head_attribution import (
    HeadAttribution as HeadAttribution,
)
from eah_interp.attribution.direct.heads import attribute_heads as attribute_heads
from eah_interp.attribution.gradient.approximate import (
    approximate_heads as approximate_heads,
)
from eah_interp.attribution.gradient.head_approximation import (
    HeadApproximation as HeadApproximation,
)
from eah_interp.attribution.lens.lens_map import LogitLens as LogitLens
from eah_interp.attribution.lens.logit_lens import logit_lens as logit_lens
from eah_interp.attribution.patching.ablation import ablate_heads as ablate_heads
from eah_interp.attribution.patching.head_patching import HeadPatching as HeadPatching
from eah_interp.attribution.patching.patching import patch_heads as patch_heads
from eah_interp.attribution.patterns.broadcast_scores import (
    BroadcastScores as BroadcastScores,
)
from eah_interp.attribution.patterns.head_patterns import HeadPatterns as HeadPatterns
from eah_interp.attribution.patterns.read import read_patterns as read_patterns
from eah_interp.attribution.patterns.score import score_broadcast as score_broadcast
from eah_interp.attribution.picture.map import PictureAttribution as PictureAttribution
from eah_interp.attribution.picture.relevance import (
    attribute_patches as attribute_patches,
)
from eah_interp.attribution.recipients.mediation import (
    trace_mediators as trace_mediators,
)
from eah_interp.attribution.recipients.mediators import Mediation as Mediation
from eah_interp.attribution.recipients.recipient_attribution import (
    RecipientAttribution as RecipientAttribution,
)
from eah_interp.attribution.recipients.recipients import (
    attribute_recipients as attribute_recipients,
)
