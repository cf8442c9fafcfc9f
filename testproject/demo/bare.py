"""Starts a cluster and a cache alone, for a project of one's own, and writes the settings that lead there."""

from __future__ import annotations

import threading
from pathlib import Path
from pprint import pformat

from rich.console import Console

from testproject.cluster import Cluster, ClusterError
from testproject.demo.site import require_cache


def run_bare(console: Console, *, file: Path, lag_ms: int, replicas: int) -> None:
    """Run a primary, its replicas and a cache until it is interrupted.

    Args:
        console: where it says what it does.
        file: a Python module to write DATABASES and CACHES to.
        lag_ms: milliseconds by which replicas replay late.
        replicas: how many.

    Raises:
        ClusterError: the servers do not start, or the file cannot be written.
    """
    console.print("Starting the servers.")
    with Cluster(replicas=replicas, cache=True, databases=("app",)) as cluster:
        for replica in cluster.replicas:
            replica.set_delay(lag_ms / 1000)
        try:
            file.write_text(settings_of(cluster))
        except OSError as error:
            raise ClusterError(f"Cannot write {str(file)!r}: {error.strerror}.") from error
        console.print(f"A primary, {replicas} replicas that replay {lag_ms} ms late, and a cache.")
        console.print(f"Settings:  {file}", soft_wrap=True)
        console.print("Ctrl-C stops everything.")
        threading.Event().wait()


def settings_of(cluster: Cluster) -> str:
    """Return a module with the settings DATABASES and CACHES of a cluster."""
    cache = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": require_cache(cluster).url,
        }
    }
    databases = pformat(cluster.django_databases(), sort_dicts=False, width=100)
    return f"DATABASES = {databases}\nCACHES = {pformat(cache, width=100)}\n"
