"""Sphinx's settings. Some pages are made of the code when the site is built: see `generate`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

import quantenv  # noqa: E402

project = "quantenv"
copyright = "the quantenv developers, MIT license"
version = release = quantenv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"quantenv {version}"
html_static_path = ["_static"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
#: Google's docstrings name code in single backquotes, which reStructuredText would take for references.
default_role = "code"
suppress_warnings = ["ref.python"]


def setup(app: object) -> None:
    """Makes the pages."""
    generate.write(HERE / "generated")
