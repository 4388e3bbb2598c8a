"""The command line: `eah-interp`."""

from eah_interp.cli.app import app as app
