"""Sphinx configuration.

`make docs` builds without a network, `make docs-links` checks what needs one.
"""

import os
import re
import sys
import warnings
from pathlib import Path

import sklearn_msf

sys.path.insert(0, str(Path(__file__).parent))  # gallery_order, gallery_warnings

project = "sklearn_msf"
author = "The sklearn_msf developers"
copyright = "2026, the sklearn_msf developers"
release = version = sklearn_msf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.katex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "benchmarks"]

# Pages

default_role = "literal"  # of single backquotes in docstrings
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Browsers lay out MathML themselves, so a page needs neither the style sheet nor the fonts of
# KaTeX, which its extension would take from the network. KaTeX writes small spaces as bare
# characters, which browsers drop; a width is kept.
katex_options = r"""
output: "mathml", macros: {"\\,": "\\hspace{0.17em}", "\\;": "\\hspace{0.28em}"}
"""
katex_css_path = "katex-math.css"


def _lead_to_examples(app, docname, source):
    """Lead links to scripts of examples, which work in a checkout, to their pages on the site."""
    source[0] = re.sub(r"\(\.\./examples/gallery/(\w+)\.py\)", r"(gallery/\1.rst)", source[0])


def setup(app):
    """Connect what changes pages before they are read."""
    app.connect("source-read", _lead_to_examples)


# API

autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"  # the names of methods alone fit beside the page
numpydoc_show_class_members = False  # the template of classes lists them
numpydoc_attributes_as_param_list = True
# Left out are checks against habits of this package: parameters that several methods share are
# grouped ("As in ..."), fields of results are attributes, and a result whose class says all has no
# sentence.
numpydoc_validation_checks = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04", "SS05", "PR02", "PR05", "PR10", "YD01"),
}

# References

# Without a network only references into this package can be checked.
_online = bool(os.environ.get("SKLEARN_MSF_DOCS_ONLINE"))
nitpicky = True
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }
    if _online
    else {}
)
nitpick_ignore_regex = [] if _online else [(r"py:.*", r"(?!sklearn_msf).*")]

# Examples

warnings.filterwarnings("ignore", message=".*is non-interactive, and thus cannot be shown")
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "gallery_order.ReadingOrder",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("sklearn_msf",),
    "reference_url": {"sklearn_msf": None},
    "capture_repr": (),
    "reset_modules": ("matplotlib", "gallery_warnings.without_place"),
    "plot_gallery": True,
    "only_warn_on_example_error": False,
    "abort_on_example_error": False,
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}

# Looks

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_msf"
html_theme_options = {
    "logo": {"text": "sklearn_msf"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc", "sg_download_links"],
    "show_prev_next": True,
    "navigation_depth": 2,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version", "theme-version"],
}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
