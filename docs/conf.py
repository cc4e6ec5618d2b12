"""The documentation site: ``make docs`` builds it into ``site/``; it needs no network then or later."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mnv4_rl import __version__  # noqa: E402  the checkout's own

project = "mnv4_rl"
author = "the mnv4_rl authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# The whole checkout is the source, so that a link works here and in a browser of the repository.
root_doc = "docs/index"
include_patterns = [
    "README*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "experiments/results/*.md",
    "experiments/results/**/*.md",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Our docstrings are Google's, with sections of our own.
napoleon_google_docstring = True
napoleon_custom_sections = ["Shape", "Source", "Sources", "Aliases", "Spaces"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

# READMEs and tables of results (which begin at H2) are led to by links; the sidebar does without them.
suppress_warnings = ["toc.not_included", "myst.header"]

html_theme = "furo"
html_title = f"mnv4_rl {release}"
html_show_sphinx = False
html_show_copyright = False
templates_path: list[str] = []
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_extra_path = ["_extra"]  # site/index.html leads to the front page
