"""A language model that sees: loading, inputs, image spans and hook points."""

from eah_interp.lvlm.loading import load as load
from eah_interp.lvlm.loading import wrap as wrap
from eah_interp.lvlm.model import LVLM as LVLM
from eah_interp.lvlm.spans import ImagePart as ImagePart
from eah_interp.lvlm.spans import ImageSpan as ImageSpan
