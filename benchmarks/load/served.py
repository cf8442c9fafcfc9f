"""The site under gunicorn, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from testproject.cluster import gunicorn


@contextmanager
def serving(environ: Mapping[str, str], *, workers: int = 2, threads: int = 4) -> Iterator[str]:
    """Serve the benchmarks' site, and return its URL."""
    with gunicorn.serving(
        "benchmarks.load.wsgi",
        environ,
        workers=workers,
        threads=threads,
        keep_alive=gunicorn.LONG_KEEP_ALIVE,
        page="/read/?rows=0",
        cookie="sessionid=0",
    ) as site:
        yield site.url
