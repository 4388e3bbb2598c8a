"""The command line: `eah-interp`."""

from eah_interp.cli import commands as commands
from eah_interp.cli import toy as toy
from eah_interp.cli.app import app as app
