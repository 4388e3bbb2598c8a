"""Figures, drawn from arrays: results call this folder, and it knows none of them."""

from eah_interp.viz.circuits import GroupedPatterns as GroupedPatterns
from eah_interp.viz.overlays import draw_sinks as draw_sinks
from eah_interp.viz.overlays import plot_sinks as plot_sinks
from eah_interp.viz.results import group_patterns as group_patterns
from eah_interp.viz.results import plot_attention as plot_attention
from eah_interp.viz.results import plot_donors as plot_donors
from eah_interp.viz.results import plot_sink_map as plot_sink_map
from eah_interp.viz.results import plot_targets as plot_targets
from eah_interp.viz.results import plot_top as plot_top
from eah_interp.viz.results import show_attention as show_attention
from eah_interp.viz.results import show_tokens as show_tokens
from eah_interp.viz.widgets import Widget as Widget
from eah_interp.viz.widgets import restart_sharing as restart_sharing
from eah_interp.viz.widgets import save_page as save_page
