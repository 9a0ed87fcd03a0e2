"""Settings of the documentation site, which `make docs` builds into build/docs.

Sphinx reads every Markdown page of the repository (its source folder is the root), so that a link works on the site
as it does on a forge, and `make docs` checks the links of README.md too.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402

project = "nrsrd-jax"
release = importlib.metadata.version("nrsrd-jax")
project_copyright = "the authors of nrsrd-jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
include_patterns = ["*.md", "docs/*.md", "docs/notebooks/*.ipynb", "demo/*.md", "benchmarks/*.md", "tests/golden/*.md"]
exclude_patterns = ["runs", "build", ".venv", "**/.*"]

# Headings get the anchors that a forge gives them, so that page.md#heading works on both.
myst_heading_anchors = 3
# Option names begin with two hyphens, which must not become a dash.
smartquotes = False
# Docstrings write code in single backquotes.
default_role = "code"
napoleon_custom_sections = [("Source", "Source")]
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "nrsrd-jax"
html_copy_source = False
html_use_index = html_domain_indices = False
html_show_sphinx = False
html_static_path = ["site"]
html_css_files = ["site.css"]
# Code blocks without a language are shell sessions, configurations or output.
highlight_language = "text"

# The pages that are completed at build time, and the function that writes the rest of each.
GENERATED = {"docs/commands": reference.commands, "docs/options": reference.options}


def _table_of_contents(index: str) -> str:
    """Return the index page with a hidden table of contents for each of its lists, for the sidebar."""
    captions = re.split(r"^## (.+)$", index, flags=re.MULTILINE)
    parts = [captions[0]]
    for caption, text in zip(captions[1::2], captions[2::2], strict=True):
        pages = re.findall(r"^- \[.+?\]\((\S+)\.(?:md|ipynb)\)", text, flags=re.MULTILINE)
        toctree = ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""] if pages else []
        parts += [f"## {caption}", text, "\n".join(toctree)]
    return "".join(parts)


def _notebook(content: str) -> str:
    """Return a notebook as Markdown, without output."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(content)["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def _complete(app, name: str, source: list[str]) -> None:
    if Path(app.env.doc2path(name)).suffix == ".ipynb":
        source[0] = _notebook(source[0])
    if name == root_doc:
        source[0] = _table_of_contents(source[0])
    if name in GENERATED:
        source[0] += "\n" + GENERATED[name]()


def setup(app) -> None:
    """Complete pages as Sphinx reads them."""
    app.connect("source-read", _complete)
