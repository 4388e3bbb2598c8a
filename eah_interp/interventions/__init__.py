"""What to change at a hook point, inside any `with model.trace(...)`."""

from eah_interp.interventions.eah import edit as edit
from eah_interp.interventions.eah import intervene as intervene
from eah_interp.interventions.patches import EAHPatch as EAHPatch
from eah_interp.interventions.patches import LayerPatch as LayerPatch
from eah_interp.interventions.settings import EAH as EAH
from eah_interp.interventions.sink_map import SinkMap as SinkMap
from eah_interp.interventions.sink_map import score_sinks as score_sinks
