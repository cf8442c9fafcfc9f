"""Leaves the site running, to be clicked through."""

from __future__ import annotations

import time

from rich.console import Console

from testproject.cluster import Cluster
from testproject.cluster.gunicorn import Site
from testproject.demo.site import PASSWORD, prepare, running_site

NAMES = ["ada", "grace", "linus"]
STAFF = "ada"
TICK_SECONDS = 0.2


def serve(
    console: Console, *, routing: str, lag_ms: int, port: int, workers: int, replicas: int
) -> None:
    """Serve the site until it is interrupted."""
    console.print("Starting the servers.")
    with Cluster(replicas=replicas, cache=True, databases=("app",)) as cluster:
        prepare(cluster, NAMES, staff=STAFF)
        for replica in cluster.replicas:
            replica.set_delay(lag_ms / 1000)
        with running_site(cluster, routing, workers=workers, port=port, inspect=True) as site:
            _explain(console, site, routing, lag_ms)
            _wait(site)


def _explain(console: Console, site: Site, routing: str, lag_ms: int) -> None:
    console.print(f"Site:      {site.url}/")
    console.print(f"Users:     {', '.join(NAMES)} ({STAFF} may use the admin), password {PASSWORD}")
    console.print(f"Routing:   {routing}; each page's footer shows what served each query, and why")
    console.print(f"Lag:       {lag_ms} ms; the footer's control changes it")
    console.print("Ctrl-C stops everything.")


def _wait(site: Site) -> None:
    while True:
        site.require_running()
        time.sleep(TICK_SECONDS)
