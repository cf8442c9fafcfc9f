"""A small site of its own, made by ``django-admin startproject``, with what the page about testing says among its tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from testproject.cluster import Cluster
from tests.documents import DOCS, ROOT, blocks

SITE = ROOT / "tests" / "kit_site"

_SETTINGS = """
DATABASES = {{
    "default": {database!r} | {{"TEST": {{"MIGRATE": False}}}},
    "replica1": {database!r} | {{"TEST": {{"MIRROR": "default"}}}},
}}
DATABASE_ROUTERS = ["django_replica_router.ReplicaRouter"]
INSTALLED_APPS += ["django_replica_router", "orders"]
MIDDLEWARE = ["django_replica_router.middleware.ReplicaRouterMiddleware", *MIDDLEWARE]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""


def make_project(cluster: Cluster, folder: Path) -> Path:
    """Make the site in a folder: its databases are mirrors on the cluster's primary, its cache is Django's default."""
    run(folder, "-m", "django", "startproject", "shop", ".")
    database = cluster.django_databases("app")["default"]
    database.pop("TEST", None)
    settings = folder / "shop" / "settings.py"
    settings.write_text(settings.read_text() + _SETTINGS.format(database=database))
    (folder / "shop" / "urls.py").write_text("from orders.views import urlpatterns\n")
    app = folder / "orders"
    app.mkdir()
    for file in SITE.glob("*.py"):
        (app / file.name).write_text(file.read_text())
    template = (DOCS / "examples" / "test_replicas.py").read_text()
    (app / "test_template.py").write_text(template)
    for block in blocks(DOCS / "testing.md"):
        if block.file.startswith(("orders/", "conftest")):
            (folder / block.file).write_text(block.text)
    (folder / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = shop.settings\n")
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run Python in the folder; return what it prints, whether it fails or not."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # In CI pytest tells each failure twice.
        if not name.startswith(("DJANGO_SETTINGS", "TESTPROJECT_", "PYTEST_", "CI"))
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return f"{done.stdout}\nexit status {done.returncode}\n"


def plugin() -> list[str]:
    """Return what loads the plugin where the installed distribution does not name it yet."""
    names = entry_points(group="pytest11").names
    return (
        [] if "django_replica_router" in names else ["-p", "django_replica_router.testing.plugin"]
    )


def outcomes(output: str) -> dict[str, str]:
    """Return how each test ended, by its class and name, from what ``pytest -rA`` or ``manage.py test`` prints."""
    by_pytest = re.findall(r"^(PASSED|FAILED|ERROR) \S+?\.py::(\S+)", output, re.MULTILINE)
    if by_pytest:
        return {name.replace("::", "."): end for end, name in by_pytest}
    lines = r"^test_\w+ \(\w+\.(\w+\.\w+\.\w+)\)(?:\n.*)? \.\.\. (?:.*\n)??.*?(ok|FAIL|ERROR)$"
    ends = {"ok": "PASSED", "FAIL": "FAILED"}
    return {name: ends.get(end, end) for name, end in re.findall(lines, output, re.MULTILINE)}
