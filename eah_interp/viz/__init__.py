"""Pictures of results: every function takes a result, never a model."""

from eah_interp.viz.curves import plot_lens as plot_lens
from eah_interp.viz.effects import plot_heads as plot_heads
from eah_interp.viz.effects import plot_targets as plot_targets
from eah_interp.viz.effects import plot_top as plot_top
from eah_interp.viz.figures import plot_sink_map as plot_sink_map
from eah_interp.viz.figures import plot_sinks as plot_sinks
from eah_interp.viz.heat import plot_picture as plot_picture
from eah_interp.viz.picture import draw_sinks as draw_sinks
