"""Tiny random LVLMs of every family, built from the real classes, with no download.

For this package's tests and for tests of code that uses it. A tiny model sees and
speaks nothing, but it has its family's real forward pass, its real processor where one
can be built offline, and weights scaled so that its heads clearly differ.
"""

from eah_interp.testing._build import random_image as random_image
from eah_interp.testing._build import tiny_folder as tiny_folder
from eah_interp.testing._build import tiny_inputs as tiny_inputs
from eah_interp.testing._build import tiny_lvlm as tiny_lvlm
from eah_interp.testing._build import tiny_processor as tiny_processor
from eah_interp.testing._build import tiny_tokenizer as tiny_tokenizer
from eah_interp.testing._facts import Family as Family
from eah_interp.testing._families import FAMILIES as FAMILIES
