"""Starts and stops the project under gunicorn, and prepares its database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testproject.cluster import Cluster, ClusterError, ValkeyServer
from testproject.cluster.gunicorn import Site, serving
from testproject.cluster.programs import run_django, site_environment

PASSWORD = "replica"


@dataclass(frozen=True, slots=True)
class Account:
    """One user as the database was prepared."""

    name: str
    sessions: list[str]
    notes: list[int]


def require_cache(cluster: Cluster) -> ValkeyServer:
    """Return the cache of a cluster.

    Raises:
        ClusterError: it has none.
    """
    if cluster.cache is None:
        raise ClusterError("The cluster has no cache. Start it with cache=True.")
    return cluster.cache


def environment(
    cluster: Cluster, routing: str, *, inspect: bool = False, cookies: str = ""
) -> dict[str, str]:
    """Return the environment that tells the settings where the servers are."""
    databases = cluster.django_databases()
    for database in databases.values():
        # Servers are restarted under a site that is looked at: else each thread of it fails once more.
        database["CONN_HEALTH_CHECKS"] = inspect
    return site_environment(
        databases,
        require_cache(cluster).url,
        routing=routing,
        TESTPROJECT_INSPECT="1" if inspect else "",
        TESTPROJECT_COOKIES=cookies,
    )


def prepare(
    cluster: Cluster, names: list[str], *, staff: str = "", sessions: int = 0
) -> list[Account]:
    """Migrate, create the users, and wait until the replicas have them.

    With the package installed, as a site that uses it migrates: then its token store knows the
    cluster from the migration on, and the first page already reads from replicas.
    """
    command = ["prepare_demo", "--password", PASSWORD, "--staff", staff]
    command += ["--sessions", str(sessions), *names]
    described = json.loads(run_django(environment(cluster, "package"), *command))
    cluster.wait_caught_up()
    return [Account(name, **account) for name, account in described.items()]


@contextmanager
def running_site(
    cluster: Cluster,
    routing: str,
    *,
    workers: int,
    port: int = 0,
    inspect: bool = False,
    cookies: str = "",
) -> Iterator[Site]:
    """Serve the project for the length of the block.

    Args:
        cluster: its servers.
        routing: package, random, pin or primary.
        workers: how many processes.
        port: of loopback; a free one if it is 0.
        inspect: whether each page tells what served it.
        cookies: what the names of its cookies begin with, where one browser visits several sites.
    """
    environ = environment(cluster, routing, inspect=inspect, cookies=cookies)
    with serving("testproject.wsgi", environ, workers=workers, port=port) as site:
        yield site
