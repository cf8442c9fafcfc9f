"""The guides' own tests and files, run on the test project as their reader would run them on a site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from testproject.cluster import Cluster
from tests.documents import DOCS, ROOT, Block, blocks


def block_of(page: str, file: str) -> Block:
    """Return the block of a page whose first line names that file."""
    (found,) = (block for block in blocks(DOCS / page) if block.file == file)
    return found


def run_tests(code: str, cluster: Cluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run tests of a site whose replicas mirror its primary, at the primary's address."""
    databases = cluster.django_databases()
    primary = databases["default"]
    mirrors = {
        alias: {**database, "HOST": primary["HOST"], "PORT": primary["PORT"]}
        for alias, database in databases.items()
    }
    for database in mirrors.values():
        database["TEST"] = {**database.get("TEST", {}), "NAME": "test_guides"}
    assert cluster.cache is not None
    file = folder / "test_routing.py"
    file.write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-c", os.devnull, file],
        cwd=folder,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "testproject.settings",
            "PYTHONPATH": str(ROOT),
            "TESTPROJECT_CACHE_URL": cluster.cache.url,
            "TESTPROJECT_DATABASES": json.dumps(mirrors),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_test_of_the_routing_passes(cluster: Cluster, tmp_path: Path) -> None:
    """As it stands in the guide; and without the fixture that puts the rules to work, it fails."""
    code = block_of("testing.md", "tests/test_routing.py").text
    _, test = code.split("@pytest.mark.django_db", 1)
    assert "(client, replicas)" in test
    control = f"@pytest.mark.django_db{test}".replace("(client, replicas)", "(client)")
    done = run_tests(
        f"{code}\n\n{control.replace('def test_', 'def test_without_')}", cluster, tmp_path
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "FAILED test_routing.py::test_without_" in done.stdout
