"""`python -m eah_interp`: the command line where its script is not on the path."""

from eah_interp.cli import app

app(prog_name="python -m eah_interp")
