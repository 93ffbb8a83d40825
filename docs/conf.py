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
exclude_patterns = ["_build", "benchmarks"]
# Methods inherited from scikit-learn refer to its own glossary and user guide.
suppress_warnings = ["ref.ref", "ref.term"]
html_theme = "alabaster"
html_theme_options = {"description": "Classify, abstain, generate"}
napoleon_use_ivar = True
