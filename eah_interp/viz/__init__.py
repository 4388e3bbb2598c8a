"""Pictures of results: every function takes a result, never a model."""

from eah_interp.viz.figures import plot_sink_map as plot_sink_map
from eah_interp.viz.figures import plot_sinks as plot_sinks
from eah_interp.viz.picture import draw_sinks as draw_sinks
