"""What to change at a hook point, inside any `with model.trace(...)`."""

from eah_interp.interventions.directions import Directions as Directions
from eah_interp.interventions.directions import find_directions as find_directions
from eah_interp.interventions.donation import LayerPatch as LayerPatch
from eah_interp.interventions.eah import EAH as EAH
from eah_interp.interventions.eah import EAHPatch as EAHPatch
from eah_interp.interventions.find_sinks import find_sinks as find_sinks
from eah_interp.interventions.found_sinks import FoundSinks as FoundSinks
from eah_interp.interventions.head_lists import HeadList as HeadList
from eah_interp.interventions.heads import Ablation as Ablation
from eah_interp.interventions.intervene import donors_of_run as donors_of_run
from eah_interp.interventions.intervene import edit as edit
from eah_interp.interventions.intervene import intervene as intervene
from eah_interp.interventions.intervention import Intervention as Intervention
from eah_interp.interventions.intervention import Patch as Patch
from eah_interp.interventions.methods import METHODS as METHODS
from eah_interp.interventions.pai import PAI as PAI
from eah_interp.interventions.sinks import SinkMap as SinkMap
from eah_interp.interventions.sinks import score_sinks as score_sinks
from eah_interp.interventions.steer import Steer as Steer
from eah_interp.interventions.tower_map import TowerMap as TowerMap
from eah_interp.interventions.tower_map import map_tower as map_tower
from eah_interp.interventions.var import SINK_DIMS as SINK_DIMS
from eah_interp.interventions.var import VAR as VAR
from eah_interp.interventions.var import find_sink_dims as find_sink_dims
from eah_interp.kernels.sink_kinds import SinkRule as SinkRule
from eah_interp.plugins import register as register
