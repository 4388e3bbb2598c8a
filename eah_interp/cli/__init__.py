"""The command line: `eah-interp`."""

from eah_interp.cli import attribute as attribute
from eah_interp.cli import commands as commands
from eah_interp.cli import report as report
from eah_interp.cli import score as score
from eah_interp.cli import study as study
from eah_interp.cli import study_report as study_report
from eah_interp.cli import toy as toy
from eah_interp.cli.app import app as app
