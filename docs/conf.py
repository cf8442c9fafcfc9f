"""How Sphinx builds the site: `python -m sphinx -W -b html docs site`. Nothing of it needs the network."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import django
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# The reference is made of docstrings, and some modules look at Django's settings when they are imported.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
django.setup()

project = "django-replica-router"
author = "the django-replica-router founders"
version = release = re.findall(
    r'__version__ = "(.+)"', (ROOT / "django_replica_router" / "__init__.py").read_text()
)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["tasklist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # each setting and each check is a heading of the third level
autodoc_typehints = "none"  # signatures tell them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "django-replica-router"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# The pages that hold the README's sections. A link to any other of them leads to the overview.
README_PAGES = {
    "": "index.md",
    "#what-to-know": "limits.md#what-to-know",
    "#what-it-cannot-do": "limits.md#what-it-cannot-do",
}


def lead_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Have links to the README, which is no page of the site, lead to where it is shown here."""
    up = "../" * page.count("/")

    def target(match: re.Match[str]) -> str:
        anchor = match[1] or ""
        return f"({up}{README_PAGES.get(anchor, 'overview.md' + anchor)})"

    source[0] = re.sub(rf"\({up}\.\./README\.md(#[\w-]+)?\)", target, source[0])


def keep_pictures(app: Sphinx, exception: Exception | None) -> None:
    """Copy what ``<picture>`` shows, in a page and in the README that one includes: HTML is left as it is."""
    if exception is None and app.builder.format == "html":
        for folder in ("pictures", "docs/pictures"):
            shutil.copytree(
                ROOT / "docs" / "pictures", Path(app.outdir) / folder, dirs_exist_ok=True
            )


def setup(app: Sphinx) -> None:
    """Connect what the site does to the text of its pages."""
    app.connect("source-read", lead_to_pages)
    app.connect("build-finished", keep_pictures)
