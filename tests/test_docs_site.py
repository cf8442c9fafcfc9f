"""The site that is made of the documents: it builds without a warning, and leaves nothing out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import django_replica_router
from django_replica_router import errors, observing, signals, testing
from django_replica_router.policy import Reason, ReplicaState
from tests.documents import DOCS, PAGES, ROOT


def build(docs: Path, site: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    """Build the site as CONTRIBUTING says, and return what Sphinx has told."""
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, docs, site],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as it is published."""
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_first_page_is_the_first_screen_of_the_readme(site: Path) -> None:
    """By inclusion, so that the two cannot differ; and no further."""
    page = (site / "index.html").read_text()
    assert "Sends writes to the PostgreSQL primary and reads to its streaming replicas" in page
    assert "ReplicaRouterMiddleware" in page
    assert "Beside other routers" not in page
    assert (DOCS / "index.md").read_text().startswith("```{include} ../README.md\n")


def test_each_picture_is_on_the_site(site: Path) -> None:
    """Where the page that shows it looks for it, in either colour scheme."""
    shown = [
        site / picture
        for page in ("overview.html", "demo.html")
        for picture in re.findall(r'src(?:set)?="([^"]+\.png)"', (site / page).read_text())
    ]
    assert len(shown) == 6
    assert [picture for picture in shown if not picture.is_file()] == []


def test_each_page_is_in_a_list_of_contents() -> None:
    """Whoever adds a page puts it into the toctree of the index."""
    text = (DOCS / "index.md").read_text()
    listed = [
        name
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
        for name in re.findall(r"^(?:\w+ <)?([\w/-]+)>?$", tree, re.MULTILINE)
    ]
    of_languages = ["es/tutorial", "pt/tutorial"]
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    assert sorted([*listed, *of_languages, "index"]) == pages


def test_each_public_name_has_its_docstring_on_the_site(site: Path) -> None:
    """Functions, exceptions, signals, reasons and states, each as what it is imported by."""
    page = (site / "api.html").read_text()
    modules = {errors: "tell_import_failure", signals: "Signal"}
    expected = {f"django_replica_router.{name}" for name in django_replica_router.__all__}
    for module, private in modules.items():
        expected |= {
            f"{module.__name__}.{name}"
            for name, value in vars(module).items()
            if not name.startswith("_")
            and name != private
            and (module is signals or getattr(value, "__module__", "") == module.__name__)
            and (module is not signals or hasattr(value, "send"))
        }
    for module in (observing, testing):
        expected |= {f"{module.__name__}.{name}" for name in module.__all__}
    for values in (Reason, ReplicaState):
        expected |= {f"django_replica_router.policy.{values.__name__}.{v.name}" for v in values}
    found = set(re.findall(r'<dt class="sig[^>]*id="([\w.]+)"', page))
    assert expected <= found, expected - found


def test_each_reason_has_its_line() -> None:
    """With the words that the code has for it."""
    text = (DOCS / "reasons.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text, re.MULTILINE)
    assert told == [(reason.name, reason.value) for reason in Reason]


def test_a_fault_in_a_page_is_found(tmp_path: Path) -> None:
    """A link to what is not there, and a page that nobody finds, stop the build, and are named."""
    shutil.copytree(DOCS, tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "django_replica_router", tmp_path / "django_replica_router")
    faults = {
        "faq.md": "[a page](nowhere.md)",
        "limits.md": "[a heading](settings.md#nothing)",
        "alone.md": "# A page in no list",
    }
    for page, fault in faults.items():
        with (tmp_path / "docs" / page).open("a") as file:
            file.write(f"\n{fault}\n")
    done = build(tmp_path / "docs", tmp_path / "site", "dummy")
    assert done.returncode
    for page in faults:
        assert f"docs/{page}" in done.stderr
