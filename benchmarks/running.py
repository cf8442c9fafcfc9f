"""The site of a contender under gunicorn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.contenders import Contender
from testproject.cluster import Cluster
from testproject.cluster.gunicorn import LONG_KEEP_ALIVE, Site, serving

WORKERS = 2


@contextmanager
def running(
    cluster: Cluster,
    contender: Contender,
    *,
    workers: int = WORKERS,
    meter: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[Site]:
    """Serve the site with a contender's routing for the length of the block.

    The database must have been made by ``testproject.demo.site.prepare``.
    """
    environ = contender.environment(cluster, meter=meter, overrides=overrides)
    # Contenders wait for their turn with their connections open.
    with serving("testproject.wsgi", environ, workers=workers, keep_alive=LONG_KEEP_ALIVE) as site:
        yield site
