"""The embedded toy LVLM: its world, its language, its weights.

`world` says what exists and what goes together, `scenes` draws scenes and their
counterfactuals, `render` paints them, `language` says what is asked and answered,
`model` builds the LLaVA and knows where the weights lie. Importing this imports neither
transformers nor nnsight. What trains is apart, in `toy.training`, and nothing here
needs it: `python -m eah_interp.toy.training.train`.
"""

from eah_interp.toy.language import build_tokenizer as build_tokenizer
from eah_interp.toy.language import objects_in as objects_in
from eah_interp.toy.language import prompt_for as prompt_for
from eah_interp.toy.language import questions_for as questions_for
from eah_interp.toy.model import TOYS as TOYS
from eah_interp.toy.model import toy_path as toy_path
from eah_interp.toy.render import Scene as Scene
from eah_interp.toy.scenes import draw_scene as draw_scene
from eah_interp.toy.scenes import draw_scenes as draw_scenes
from eah_interp.toy.scenes import with_companions_turned as with_companions_turned
from eah_interp.toy.scenes import with_object_moved as with_object_moved
from eah_interp.toy.scenes import with_object_recoloured as with_object_recoloured
from eah_interp.toy.scenes import with_object_swapped as with_object_swapped
from eah_interp.toy.scenes import without_object as without_object
from eah_interp.toy.world import OBJECTS as OBJECTS
from eah_interp.toy.world import World as World
