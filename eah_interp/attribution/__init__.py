"""Which heads move which object: attribution to object-token logits."""

from eah_interp.attribution.broadcast_scores import BroadcastScores as BroadcastScores
from eah_interp.attribution.broadcast_scores import score_broadcast as score_broadcast
from eah_interp.attribution.cases import Case as Case
from eah_interp.attribution.cases import pose as pose
from eah_interp.attribution.circuits import Circuits as Circuits
from eah_interp.attribution.circuits import find_circuits as find_circuits
from eah_interp.attribution.direct import HeadAttribution as HeadAttribution
from eah_interp.attribution.direct import attribute_heads as attribute_heads
from eah_interp.attribution.gradient import HeadApproximation as HeadApproximation
from eah_interp.attribution.gradient import approximate_heads as approximate_heads
from eah_interp.attribution.lens import LogitLens as LogitLens
from eah_interp.attribution.lens import logit_lens as logit_lens
from eah_interp.attribution.mediation import Mediation as Mediation
from eah_interp.attribution.mediation import trace_mediators as trace_mediators
from eah_interp.attribution.node_patching import NodePatching as NodePatching
from eah_interp.attribution.node_patching import patch_nodes as patch_nodes
from eah_interp.attribution.pairs import Pairs as Pairs
from eah_interp.attribution.pairs import pose_pairs as pose_pairs
from eah_interp.attribution.patches import PictureAttribution as PictureAttribution
from eah_interp.attribution.patches import attribute_patches as attribute_patches
from eah_interp.attribution.patching import HeadPatching as HeadPatching
from eah_interp.attribution.patching import ablate_heads as ablate_heads
from eah_interp.attribution.patching import patch_heads as patch_heads
from eah_interp.attribution.path_gradients import (
    PathApproximation as PathApproximation,
)
from eah_interp.attribution.path_gradients import approximate_paths as approximate_paths
from eah_interp.attribution.paths import PathPatching as PathPatching
from eah_interp.attribution.paths import patch_paths as patch_paths
from eah_interp.attribution.patterns import HeadPatterns as HeadPatterns
from eah_interp.attribution.patterns import read_patterns as read_patterns
from eah_interp.attribution.recipients import (
    RecipientAttribution as RecipientAttribution,
)
from eah_interp.attribution.recipients import (
    attribute_recipients as attribute_recipients,
)
