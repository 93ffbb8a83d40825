"""Sphinx configuration."""

import sklearn_msf

project = "sklearn_msf"
author = "The sklearn_msf developers"
copyright = "2026, the sklearn_msf developers"
release = sklearn_msf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Classify, abstain, generate"}
