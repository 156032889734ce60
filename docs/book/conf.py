"""How Sphinx makes the book. `assemble.py` writes the folder of sources that it reads; `make book` runs both."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import assemble  # noqa: E402

SOURCES = assemble.SOURCES

project = "Inside language models"
author = "The authors of Inside language models"
copyright = "the authors. Code: Apache-2.0; text, figures and exercises: CC BY 4.0"
release = assemble.version_of_course()
extensions = ["myst_nb", "autoapi.extension"]
default_role = "code"  # docstrings write `name` where reStructuredText has ``name``

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those of the committed notebooks
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # its still is beside it
nb_ipywidgets_js = {}
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would fetch what the book leaves out

autoapi_dirs = [str(SOURCES / "helpers")]
autoapi_root = "api"
autoapi_keep_files = True  # among the sources, where they can be looked at
autoapi_add_toctree_entry = False
autoapi_options = ["members", "undoc-members", "imported-members"]
autoapi_template_dir = str(HERE / "templates")
autoapi_python_class_content = "class"

suppress_warnings = ["autoapi.python_import_resolution"]  # of names that only other modules of a room use
python_use_unqualified_type_names = True
exclude_patterns = ["helpers", "downloads"]
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(HERE / "static"), str(assemble.STATIC)]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_domain_indices = False
html_show_sourcelink = False
html_copy_source = False
html_search_language = "zh"  # it splits English, too
html_search_options = {"dict": str(assemble.WORDS)}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "use_download_button": False,  # each page of a notebook offers the notebook as it was committed
    "extra_footer": f"Version {release} of the course.",
    "navbar_persistent": [],  # the search is in the sidebar
}


def only_public(app, what, name, obj, skip, options):
    """Whether autoapi leaves `name` out: modules that are no face, and what no face hands on."""
    if what in ("package", "module"):
        return name not in assemble.FACES
    return skip


def plurals_of_code(app, docname, source):
    """Docstrings write `Setting`s; reStructuredText wants a mark between the two."""
    if docname.startswith("api/"):
        source[0] = re.sub(r"(?<!`)(`[^`\s][^`\n]*`)(?=\w)", r"\1\\ ", source[0])


def setup(app):
    app.connect("source-read", plurals_of_code)
    app.connect("autoapi-skip-member", only_public)
