import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_sphinx"), str(HERE.parent)]

project = "eah_interp"
author = "eah_interp contributors"
project_file = (HERE.parent / "pyproject.toml").read_text()
release = version = tomllib.loads(project_file)["project"]["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # docs/_sphinx: equations without a script or a network
    "docstrings",
    "api",
    "commands",
    "citation",
    "tutorials",
    "offline",
]
exclude_patterns = ["_sphinx", "**.jinja"]
nitpicky = False

# Notebooks are committed with their outputs; CI runs them (nbmake), this does not.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default is two scripts of a content network
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
myst_update_mathjax = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Not preserved from the source: `asks` spells out keywords that stand in none.
autodoc_preserve_defaults = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # docstrings mark code with single backticks
python_maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "eah_interp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
