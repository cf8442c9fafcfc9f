"""The ways to run the suite: what of the package is installed, and how."""

from __future__ import annotations

from dataclasses import dataclass

PRIMARY = "default"
OTHER = "other"
REPLICA = "replica"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run the suite.

    Args:
        name: what the command calls it.
        routers: the setting ``DATABASE_ROUTERS``.
        apps: what is added to ``INSTALLED_APPS``.
        middleware: what is put in front of ``MIDDLEWARE``.
        is_scoped: each test runs in a routing scope, and the mirror counts as a healthy replica.
        is_committed: the data of a ``TestCase`` is committed.
        baseline: name of the mode that it is compared with.
    """

    name: str
    routers: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    middleware: tuple[str, ...] = ()
    is_scoped: bool = False
    is_committed: bool = False
    baseline: str = "baseline"


BASELINE = Mode(name="baseline")
CONTROL = Mode(name="control", routers=("tests.django_suite.blind.BlindRouter",))
INSTALLED = Mode(
    name="installed",
    routers=("django_replica_router.ReplicaRouter",),
    apps=("django_replica_router",),
    middleware=("django_replica_router.middleware.ReplicaRouterMiddleware",),
)
SCOPED = Mode(
    name="scoped",
    routers=INSTALLED.routers,
    apps=INSTALLED.apps,
    middleware=INSTALLED.middleware,
    is_scoped=True,
)
COMMITTED_BASELINE = Mode(
    name="committed-baseline", is_committed=True, baseline="committed-baseline"
)
COMMITTED = Mode(
    name="committed",
    routers=INSTALLED.routers,
    apps=INSTALLED.apps,
    middleware=INSTALLED.middleware,
    is_scoped=True,
    is_committed=True,
    baseline=COMMITTED_BASELINE.name,
)

MODES = {
    mode.name: mode
    for mode in (BASELINE, INSTALLED, SCOPED, COMMITTED_BASELINE, COMMITTED, CONTROL)
}


def with_router(path: str) -> Mode:
    """Return a mode that has nothing but that router, to measure any other package by."""
    return Mode(name=f"router {path}", routers=(path,))
