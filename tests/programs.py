"""The project in processes of their own: under each kind of server, and as a script."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from testproject.cluster import Cluster
from testproject.cluster.programs import running_program, site_environment
from testproject.cluster.server import free_port
from tests.conftest import wait_until

# What goes wrong in a process shows in its standard error. That a server is away for a moment, or
# looked so on a busy machine, does not belong there.
NO_NEWS = """
import logging
logging.getLogger("django_replica_router").addHandler(logging.NullHandler())
"""


def environment(
    cluster: Cluster, *, settings: str = "tests.patient_settings", **options: Any
) -> dict[str, str]:
    """Return the environment that points the test project to the cluster."""
    assert cluster.cache is not None
    databases = cluster.django_databases("app")
    for database in databases.values():
        database.update(options)
    return site_environment(databases, cluster.cache.url, settings=settings, PYTHONUNBUFFERED="1")


# Longer than a client rests: who closes a connection at rest races with who uses it.
KEEP_ALIVE = "75"

SERVERS = {
    "gunicorn sync": ["-m", "gunicorn", "-w", "2", "-b", "{}", "testproject.wsgi"],
    "gunicorn threads": [
        *["-m", "gunicorn", "-w", "2", "--threads", "4", "--keep-alive", KEEP_ALIVE],
        *["-b", "{}", "testproject.wsgi"],
    ],
    "gunicorn preload": ["-m", "gunicorn", "-w", "2", "--preload", "-b", "{}", "testproject.wsgi"],
    "uvicorn": [
        "-m",
        "uvicorn",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--timeout-keep-alive",
        KEEP_ALIVE,
        "testproject.asgi:application",
    ],
    "runserver": ["-m", "django", "runserver", "{}"],
}


@contextmanager
def serving(cluster: Cluster, kind: str, log: Path, **options: Any) -> Iterator[httpx.Client]:
    """Run a server of that kind, yield a client to it, and see that all of it ends when told."""
    port = free_port()
    arguments = [part.format(f"127.0.0.1:{port}", port=port) for part in SERVERS[kind]]
    with (
        log.open("w") as output,
        running_program(
            [sys.executable, *arguments],
            env=environment(cluster, **options),
            stdout=output,
            stderr=output,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20.0) as client,
    ):
        wait_until_it_answers(client, process, log)
        yield client
        client.close()
        os.killpg(process.pid, signal.SIGTERM)
        # No thread of the package keeps a process from ending.
        process.wait(timeout=15)
        wait_until(lambda: not group_lives(process.pid), "every process of the server to end")


def wait_until_it_answers(
    client: httpx.Client,
    process: subprocess.Popen[Any],
    log: Path,
    path: str = "/api/me/",
    *,
    timeout: float = 30.0,
) -> None:
    """Return once there is an answer, whichever."""
    deadline = time.monotonic() + timeout
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            client.get(path)
            return
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    """Tell whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
