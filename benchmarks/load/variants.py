"""Contenders with settings of their own, and where they run."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.contenders import BY_NAME
from benchmarks.oracle import Promise
from testproject.cluster import Cluster, ClusterError


class Variant(NamedTuple):
    """A contender with settings of its own.

    Args:
        name: what tables call it.
        contender: a name of ``benchmarks.contenders``.
        router: what replaces ``REPLICA_ROUTER``, for the package.
        promise: by which oracle it is judged.
        polls: it waits by looking again and again, also where a server could wait itself.
    """

    name: str
    contender: str
    router: tuple[tuple[str, Any], ...] = ()
    promise: Promise = Promise.WRITTEN
    polls: bool = False


def package(wait: float, *, monotonic: bool = True, balancer: str = "rendezvous") -> Variant:
    """Return the package with those settings."""
    name = f"package, WAIT {wait:g}"
    if not monotonic:
        name += ", MONOTONIC_READS False"
    if balancer != "rendezvous":
        name += f", {balancer}"
    settings = {"WAIT": wait, "MONOTONIC_READS": monotonic, "BALANCER": balancer, "DEBUG": True}
    promise = Promise.SHOWN if monotonic else Promise.WRITTEN
    return Variant(name, "package", tuple(settings.items()), promise)


DEFAULT_WAIT = 0.05
DEFAULT = package(DEFAULT_WAIT)
POLLING = DEFAULT._replace(name=f"{DEFAULT.name}, by looking", polls=True)
WAITS = [package(0), package(0.005), DEFAULT, package(0.2)]
WRITTEN_ONLY = package(DEFAULT_WAIT, monotonic=False)


def plain(*names: str) -> list[Variant]:
    """Return those contenders as they are, of which is there what they need."""
    return [Variant(name, name) for name in names if BY_NAME[name].missing is None]


def environment(
    cluster: Cluster, variant: Variant, number: int, *, replicas: int | None = None
) -> dict[str, str]:
    """Return the environment of a process that runs the benchmarks' site.

    Args:
        cluster: with a cache.
        variant: the contender.
        number: the database of the cache, so that a token store is the contender's own.
        replicas: how many replicas it may know of; all when None.
    """
    if cluster.cache is None:
        message = "The cluster has no cache. Start it with cache=True."
        raise ClusterError(message)
    databases = cluster.django_databases()
    known = list(databases)[: None if replicas is None else replicas + 1]
    environ = BY_NAME[variant.contender].environment_for(
        {alias: databases[alias] for alias in known},
        f"{cluster.cache.url}/{number}",
        overrides={"REPLICA_ROUTER": dict(variant.router), "LOAD_POLLS": variant.polls},
    )
    return {**environ, "DJANGO_SETTINGS_MODULE": "benchmarks.load.settings"}
