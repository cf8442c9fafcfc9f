"""The ways to run the suite: what of the package is installed, and on what it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        is_scoped: each test runs in a routing scope, as a request does.
        is_committed: the data of a ``TestCase`` is committed, so that its reads are routed, too.
        is_replicated: the replica is a real standby, and not the primary by another name.
        baseline: name of the mode that it is compared with.
    """

    name: str
    routers: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    middleware: tuple[str, ...] = ()
    is_scoped: bool = False
    is_committed: bool = False
    is_replicated: bool = False
    baseline: str = "baseline"


BASELINE = Mode(name="baseline")
COMMITTED_BASELINE = Mode(
    name="committed-baseline", is_committed=True, baseline="committed-baseline"
)
INSTALLED = Mode(
    name="installed",
    routers=("django_replica_router.ReplicaRouter",),
    apps=("django_replica_router",),
    middleware=("django_replica_router.middleware.ReplicaRouterMiddleware",),
)
SCOPED = replace(INSTALLED, name="scoped", is_scoped=True)
COMMITTED = replace(SCOPED, name="committed", is_committed=True, baseline=COMMITTED_BASELINE.name)
REPLICATED = replace(COMMITTED, name="replicated", is_replicated=True)

BASELINES = {mode.name: mode for mode in (BASELINE, COMMITTED_BASELINE)}
CHOICES = {mode.name: mode for mode in (INSTALLED, SCOPED, COMMITTED, REPLICATED)}
DEFAULT = (INSTALLED.name, SCOPED.name, REPLICATED.name)


def with_router(path: str, mode: Mode = INSTALLED) -> Mode:
    """Return a mode that has nothing but that router, on what the other mode runs on.

    Args:
        path: the dotted path of the router's class.
        mode: says whether data is committed and the replica is real.
    """
    return Mode(
        name=f"{path.rpartition('.')[2]} {mode.name}",
        routers=(path,),
        is_committed=mode.is_committed,
        is_replicated=mode.is_replicated,
        baseline=mode.baseline,
    )


def control(mode: Mode) -> Mode:
    """Return a mode that has to break tests, on what the other mode runs on."""
    return with_router("tests.django_suite.blind.BlindRouter", mode)
