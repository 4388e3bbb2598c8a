"""The embedded toy LVLM: its world, its language, its weights.

Importing this imports neither transformers nor nnsight; the functions that need
transformers import it when they are called. Training is
`python -m eah_interp.toy.training.train`.
"""

from eah_interp.toy.language import SAMPLINGS as SAMPLINGS
from eah_interp.toy.language import Question as Question
from eah_interp.toy.language import ask_for as ask_for
from eah_interp.toy.language import build_processor as build_processor
from eah_interp.toy.language import build_tokenizer as build_tokenizer
from eah_interp.toy.language import caption_of as caption_of
from eah_interp.toy.language import mentions_in as mentions_in
from eah_interp.toy.language import objects_in as objects_in
from eah_interp.toy.language import prompt_for as prompt_for
from eah_interp.toy.language import questions_for as questions_for
from eah_interp.toy.model import TOYS as TOYS
from eah_interp.toy.model import Architecture as Architecture
from eah_interp.toy.model import ToyName as ToyName
from eah_interp.toy.model import build_model as build_model
from eah_interp.toy.model import toy_path as toy_path
from eah_interp.toy.render import Scene as Scene
from eah_interp.toy.scenes import draw_scene as draw_scene
from eah_interp.toy.scenes import draw_scenes as draw_scenes
from eah_interp.toy.scenes import with_object_swapped as with_object_swapped
from eah_interp.toy.scenes import without_object as without_object
from eah_interp.toy.world import COLOURS as COLOURS
from eah_interp.toy.world import GROUPS as GROUPS
from eah_interp.toy.world import OBJECTS as OBJECTS
from eah_interp.toy.world import Placement as Placement
from eah_interp.toy.world import World as World
from eah_interp.toy.world import group_of as group_of
