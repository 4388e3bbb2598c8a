"""Heads and directions that are found in a model, over many items, with their null."""

from eah_interp.finders.hallucination_heads import (
    find_hallucination_heads as find_hallucination_heads,
)
from eah_interp.finders.image_heads import find_image_heads as find_image_heads
from eah_interp.finders.localisation_heads import (
    find_localisation_heads as find_localisation_heads,
)
from eah_interp.finders.prompt_heads import find_prompt_heads as find_prompt_heads
from eah_interp.finders.scores import HeadScores as HeadScores
from eah_interp.finders.sink_dims import DimScores as DimScores
from eah_interp.finders.sink_dims import score_sink_dims as score_sink_dims
from eah_interp.interventions.directions import find_directions as find_directions
from eah_interp.interventions.var import find_sink_dims as find_sink_dims
