"""The shop window: the site served by three routings, and a page that shows them side by side."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from rich.console import Console

from testproject.cluster import Cluster
from testproject.cluster.gunicorn import Site
from testproject.demo.run import ROUTINGS
from testproject.demo.site import PASSWORD, Account, prepare, running_site
from testproject.window.controls import Controls
from testproject.window.devices import Copy
from testproject.window.serving import window_server
from testproject.window.stage import Stage, set_stage
from testproject.window.stories import DEVICES, NAMES, WRITER, Stories
from testproject.window.watching import Watcher

TICK_SECONDS = 0.2

TITLES = {
    "random": ("Random replica", "Each query goes to a replica drawn by lot."),
    "pin": ("Pinned for 15 s", "A browser that has written reads from the primary for 15 s."),
    "package": ("django-replica-router", "A replica serves where it has what this user wrote."),
}


def serve(console: Console, *, lag_ms: int, port: int, workers: int, replicas: int) -> None:
    """Serve the window until it is interrupted."""
    console.print("Starting a primary, its replicas, a cache and three sites.")
    with Cluster(replicas=replicas, cache=True, databases=("app",)) as cluster:
        accounts = prepare(cluster, NAMES, staff=WRITER, sessions=DEVICES * len(ROUTINGS))
        with ExitStack() as stack:
            sites = _start_sites(stack, cluster, workers)
            with open_window(cluster, sites, accounts, lag_ms=lag_ms, port=port) as url:
                _explain(console, url, sites)
                _wait(sites.values())


def _start_sites(stack: ExitStack, cluster: Cluster, workers: int) -> dict[str, Site]:
    """Start the three at the same time, since each takes a while to import Django."""

    def start(routing: str) -> Site:
        return stack.enter_context(
            running_site(cluster, routing, workers=workers, inspect=True, cookies=f"{routing}_")
        )

    with ThreadPoolExecutor(len(ROUTINGS)) as pool:
        sites = dict(zip(ROUTINGS, pool.map(start, ROUTINGS), strict=True))
    # All are asked to end before the first is waited for.
    for site in sites.values():
        stack.callback(site.process.terminate)
    return sites


@contextmanager
def open_window(
    cluster: Cluster,
    sites: dict[str, Site],
    accounts: Sequence[Account],
    *,
    lag_ms: int,
    port: int,
) -> Iterator[str]:
    """Open the window for the length of the block, and give its address."""
    copies = [
        Copy(routing, *TITLES[routing], url=site.url, cookies=f"{routing}_")
        for routing, site in sites.items()
    ]
    controls = Controls(cluster, lag_ms)
    watcher = Watcher(cluster, controls.doing)
    with ExitStack() as stack:
        stories = Stories(copies, accounts)
        stack.callback(stories.close)
        stories.warm_up()
        for replica in cluster.replicas:
            replica.set_delay(lag_ms / 1000)
        # Before the servers go: what moves one now comes to its end, and nothing moves one after.
        stack.callback(controls.close)
        stack.enter_context(watcher.watching())
        set_stage(Stage(watcher, controls, stories))
        yield stack.enter_context(window_server(port))


def _explain(console: Console, url: str, sites: dict[str, Site]) -> None:
    console.print(f"Open       {url}", highlight=False)
    console.print("Sites      the same with each way of routing, to click through by yourself:")
    for routing, site in sites.items():
        console.print(f"           {site.url}/  {TITLES[routing][0]}", highlight=False)
    console.print(
        f"Sign in    as {', '.join(NAMES)} ({WRITER} may use the admin), password {PASSWORD}"
    )
    console.print("Ctrl-C stops everything.")


def _wait(sites: Iterable[Site]) -> None:
    while True:
        for site in sites:
            site.require_running()
        time.sleep(TICK_SECONDS)
