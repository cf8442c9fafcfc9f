"""Real workers for the tests, each in processes of its own, ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from testproject.cluster import Cluster
from tests.test_processes import ROOT, environment


class Worker(NamedTuple):
    """A worker, and what it says."""

    process: subprocess.Popen[Any]
    log: Path


def queue_url(cluster: Cluster) -> str:
    """Return the URL of a database of the cache server that nobody empties between tests."""
    assert cluster.cache is not None
    return f"{cluster.cache.url.rsplit('/', 1)[0]}/7"


def site_environment(cluster: Cluster, apps: Sequence[str]) -> dict[str, str]:
    """Return the environment of a site with these apps."""
    return {
        **environment(cluster, settings="tests.tasks_settings"),
        "TASKS_APPS": " ".join(apps),
        "TASKS_URL": queue_url(cluster),
    }


@contextlib.contextmanager
def working(
    cluster: Cluster, arguments: Sequence[str], apps: Sequence[str], log: Path, **variables: str
) -> Iterator[Worker]:
    """Run a worker: ``python -m`` with these arguments, in a site with these apps."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**site_environment(cluster, apps), **variables},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Worker(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
