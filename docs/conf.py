"""Sphinx configuration: `make docs` builds the site with warnings as errors, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(ROOT / "examples"))
os.environ.setdefault("MPLBACKEND", "agg")

from api_pages import write_api
from inventory import SKLEARN, SKLEARN_NAMES, write_inventory
from pages import write_pages

import skcompressae

GENERATED = HERE / "generated"
INVENTORY = GENERATED / "sklearn.inv"
write_inventory(INVENTORY, "scikit-learn", SKLEARN_NAMES)
write_api(GENERATED / "api")
write_pages(GENERATED)

project = "skcompressae"
author = "The skcompressae developers"
project_copyright = author
release = version = skcompressae.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "mathml",
]
if not os.environ.get("SKCOMPRESSAE_DOCS_WITHOUT_GALLERY"):
    extensions.append("sphinx_gallery.gen_gallery")

exclude_patterns = ["_build", "_ext", "generated/*.md", "generated/backreferences", "README.md"]
nitpicky = True
default_role = "literal"
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath", "deflist", "fieldlist", "colon_fence"]
myst_heading_anchors = 4
# The words of links to files of the repository are enough: the site is also read where the repository is not.
suppress_warnings = ["config.cache"]

autodoc_typehints = "none"
autodoc_member_order = "groupwise"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False

# scikit-learn's names come from a file written above: nothing is fetched.
intersphinx_mapping = {"sklearn": (SKLEARN, str(INVENTORY))}
intersphinx_disabled_reftypes: list[str] = []

doctest_global_setup = "import warnings; warnings.simplefilter('error')"

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(demo|docstring_corpus|__init__)\.py$",
    "within_subsection_order": "gallery.position",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("skcompressae",),
    "reference_url": {"skcompressae": None},
    "reset_modules": ("matplotlib", "gallery.reset_warnings"),
    "reset_modules_order": "both",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    # Times of a build are no measurements.
    "min_reported_time": 100_000,
    "write_computation_times": False,
    "remove_config_comments": True,
    "plot_gallery": True,
    "matplotlib_animations": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skcompressae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "show_prev_next": True,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_math_renderer = "mathml"
