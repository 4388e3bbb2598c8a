"""Pictures of results: every function takes a result, never a model."""

from eah_interp.viz.circuits import GroupedPatterns as GroupedPatterns
from eah_interp.viz.circuits import group_patterns as group_patterns
from eah_interp.viz.circuits import show_attention as show_attention
from eah_interp.viz.circuits import show_tokens as show_tokens
from eah_interp.viz.donors import plot_donors as plot_donors
from eah_interp.viz.figures import plot_sink_map as plot_sink_map
from eah_interp.viz.heads import list_logits as list_logits
from eah_interp.viz.heads import plot_heads as plot_heads
from eah_interp.viz.heads import plot_lens as plot_lens
from eah_interp.viz.heads import plot_logits as plot_logits
from eah_interp.viz.heads import plot_targets as plot_targets
from eah_interp.viz.heads import plot_top as plot_top
from eah_interp.viz.pictures import draw_sinks as draw_sinks
from eah_interp.viz.pictures import plot_attention as plot_attention
from eah_interp.viz.pictures import plot_picture as plot_picture
from eah_interp.viz.pictures import plot_sinks as plot_sinks
from eah_interp.viz.widgets import Widget as Widget
from eah_interp.viz.widgets import restart_sharing as restart_sharing
from eah_interp.viz.widgets import save_page as save_page
from eah_interp.viz.widgets import share_page as share_page
