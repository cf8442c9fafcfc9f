"""Real workers for the tests, each in processes of its own, ended whatever happens."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from testproject.cluster import Cluster
from testproject.cluster.programs import running_program
from tests.test_processes import environment


class Worker(NamedTuple):
    """A worker, and what it says."""

    process: subprocess.Popen[Any]
    log: Path


def queue_url(cluster: Cluster) -> str:
    """Return the URL of a database of the cache server that nobody empties between tests."""
    assert cluster.cache is not None
    return cluster.cache.url_of(7)


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
    with (
        log.open("w") as output,
        running_program(
            [sys.executable, "-m", *arguments],
            env={**site_environment(cluster, apps), **variables},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        yield Worker(process, log)
