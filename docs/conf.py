"""Settings of Sphinx for these pages: make docs."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "ext"), str(ROOT)]

import ntkfast as nf  # noqa: E402

project = "ntkfast"
author = "ntkfast developers"
copyright = f"2026, {author}"
version = release = nf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "criteria",
    "commands",
    "pages",
    "pictures",
]
exclude_patterns = ["ext", "generated/gallery", "README.md"]
default_role = "py:obj"
smartquotes = False  # -- is an option here

# myst: the Markdown of the repository, as it is
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# A pattern of index.md may find no page: the examples, for one, are not in every archive.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: not str(record.msg).startswith("toctree glob pattern")
)

# docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it, in shapes
autodoc_preserve_defaults = True
numpydoc_show_class_members = False

# The examples that draw are run, and an error there is one of the build; tests run the others.
sphinx_gallery_conf = {
    "examples_dirs": "generated/gallery",
    "gallery_dirs": "generated/examples",
    "subsection_order": ["generated/gallery/pictures", "generated/gallery/hosts"],
    "within_subsection_order": "FileNameSortKey",
    "nested_sections": False,
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "image_scrapers": "pictures.scrape",
    "capture_repr": (),
    "download_all_examples": False,
    "notebook_extensions": set(),
    "show_signature": False,
    "write_computation_times": False,
}

# HTML; nothing is fetched from anywhere (test_docs.py)
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"ntkfast {release}"
html_static_path = ["static"]
html_css_files = ["ntkfast.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": "#1d5fa8",
        "color-brand-content": "#1d5fa8",
        "color-brand-visited": "#6b4fa0",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7fb8f5",
        "color-brand-content": "#7fb8f5",
        "color-brand-visited": "#b9a5e8",
    },
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _signature(app, what, name, thing, options, signature, returned):
    """Leave out the arguments of a class that is made by its class methods."""
    return ("", None) if name == "ntkfast.Posterior" else None


def _escaped(lines):
    """Docstrings write |x| for a norm, and reStructuredText would look for a substitution."""
    below = None  # the indentation of a formula, which stays as it is
    for line in lines:
        indentation = len(line) - len(line.lstrip())
        if line.strip() and below is not None and indentation <= below:
            below = None
        if line.strip().startswith(".. math::"):
            below = indentation
        plain = below is None and ">>>" not in line and line.count("``") % 2 == 0
        yield re.sub(r"(`.*?`)|\|", lambda m: m[1] or r"\|", line) if plain else line


def _docstring(app, what, name, thing, options, lines):
    """Link the page that docstrings name by its file, and escape bars."""
    lines[:] = [
        line.replace("docs/method.md", ":doc:`method </method>`") for line in _escaped(lines)
    ]


def _skip(app, what, name, thing, skip, options):
    """Leave out what scikit-learn adds to its estimators for its own use."""
    return True if re.fullmatch("set_.*_request", name) else None


def setup(app):
    """Connect them."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-skip-member", _skip)
