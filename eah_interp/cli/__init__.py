"""The command line: `eah-interp`."""

# Importing a file adds its commands to the app, and help lists them in this order.
from eah_interp.cli import look as look  # isort: split

from eah_interp.cli import attention as attention  # isort: split

from eah_interp.cli import attribute as attribute
from eah_interp.cli import claims as claims
from eah_interp.cli import compare as compare
from eah_interp.cli import report as report
from eah_interp.cli import score as score
from eah_interp.cli import study as study
from eah_interp.cli import toy as toy
from eah_interp.cli.app import app as app
