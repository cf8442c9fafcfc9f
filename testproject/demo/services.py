"""Starts and stops the shop, its worker, and the courier's service that it calls."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from testproject.cluster import Cluster
from testproject.cluster.gunicorn import Site, serving
from testproject.cluster.programs import running_program
from testproject.demo.site import environment, require_cache

SHOP = "testproject.services.settings"
COURIER = "testproject.services.courier_settings"
CELERY = "testproject.services.celery"
QUEUE_DATABASE = 7
"""Of the cache server: the sites' cache is another."""


@contextmanager
def running_services(cluster: Cluster, routing: str, *, workers: int) -> Iterator[Site]:
    """Serve the shop for the length of the block, with what stands behind it.

    Args:
        cluster: its servers.
        routing: of reads, in all three.
        workers: processes of each of the two sites.
    """
    environ = environment(cluster, routing)
    environ["TESTPROJECT_TASKS_URL"] = require_cache(cluster).url_of(QUEUE_DATABASE)
    with ExitStack() as stack:
        of_courier = {**environ, "DJANGO_SETTINGS_MODULE": COURIER}
        courier = stack.enter_context(
            serving("testproject.wsgi", of_courier, workers=workers, page="/parcels/0/")
        )
        environ |= {"DJANGO_SETTINGS_MODULE": SHOP, "TESTPROJECT_COURIER_URL": courier.url}
        stack.enter_context(_running_worker(environ))
        yield stack.enter_context(serving("testproject.wsgi", environ, workers=workers))


@contextmanager
def _running_worker(environ: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "--app", CELERY, "worker"]
    command += ["--concurrency", "1", "--loglevel", "WARNING", "--without-mingle"]
    with (
        tempfile.TemporaryFile() as log,
        running_program(command, env=environ, stdout=log, stderr=log),
    ):
        yield
