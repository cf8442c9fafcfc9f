"""The ways of routing that are compared, each described by the settings that it needs."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from testproject.cluster import Cluster
from testproject.cluster.programs import site_environment

PRIMARY = "default"
REPLICAS = "{replicas}"
"""Stands in a contender's settings for the list of replica aliases."""

POSTGRESQL = "django.db.backends.postgresql"


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """One way of routing.

    Args:
        name: what tables call it.
        title: what it does, for the report.
        routers: ``DATABASE_ROUTERS``.
        middleware: what stands first in ``MIDDLEWARE``.
        late_middleware: what stands last, since it needs ``request.user``.
        apps: what is added to ``INSTALLED_APPS``.
        settings: further settings. ``REPLICAS`` stands for the list of replica aliases.
        engine: ``ENGINE`` of every database.
        modules: what must be importable.
        distribution: the name on PyPI.
    """

    name: str
    title: str
    routers: Sequence[str] = ()
    middleware: Sequence[str] = ()
    late_middleware: Sequence[str] = ()
    apps: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: str = POSTGRESQL
    modules: Sequence[str] = ()
    distribution: str | None = None

    @property
    def missing(self) -> str | None:
        """Return why it cannot take part, or None."""
        for module in self.modules:
            try:
                if importlib.util.find_spec(module) is None:
                    return f"`{module}` is not installed"
            except ImportError as error:
                return f"`{module}` cannot be imported: {error}"
        return None

    @property
    def version(self) -> str:
        """Return the version of its distribution, or ""."""
        try:
            return version(self.distribution) if self.distribution else ""
        except PackageNotFoundError:
            return ""

    def settings_for(self, replicas: Sequence[str]) -> dict[str, Any]:
        """Return its further settings, with the aliases put in."""
        return {name: _filled(value, list(replicas)) for name, value in self.settings.items()}

    def environment(
        self, cluster: Cluster, *, meter: bool = False, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Return the environment of a process that runs ``benchmarks.settings`` on a cluster.

        Args:
            cluster: with a cache.
            meter: answer with the header ``X-Reads``, which costs time.
            overrides: settings that replace this contender's.
        """
        databases = cluster.django_databases()
        for database in databases.values():
            database["ENGINE"] = self.engine
        return self.environment_for(
            databases,
            cluster.cache.url if cluster.cache else None,
            meter=meter,
            overrides=overrides,
        )

    def environment_for(
        self,
        databases: Mapping[str, Mapping[str, Any]],
        cache_url: str | None,
        *,
        meter: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """Return the environment of a process that runs ``benchmarks.settings`` on databases."""
        return site_environment(
            databases,
            cache_url,
            settings="benchmarks.settings",
            routing="primary",
            BENCHMARKS_CONTENDER=self.name,
            BENCHMARKS_OVERRIDES=json.dumps(overrides or {}),
            BENCHMARKS_METER="1" if meter else "",
        )


def _filled(value: Any, replicas: list[str]) -> Any:
    if value == REPLICAS:
        return replicas
    if isinstance(value, Mapping):
        return {key: _filled(item, replicas) for key, item in value.items()}
    return replicas[0] if value == "{replica}" else value


_APP_LABELS = ("notes", "auth", "sessions", "contenttypes", "admin")

ALL = (
    Contender(name="none", title="no router: all on the primary"),
    Contender(
        name="random",
        title="a random replica for each read, as on Django's page on multiple databases",
        routers=["testproject.routing.random.RandomReplicaRouter"],
    ),
    Contender(
        name="pin",
        title="the same, and the primary for 15 s after a write",
        routers=["testproject.routing.pin.PinRouter"],
        middleware=["testproject.routing.pin.PinMiddleware"],
    ),
    Contender(
        name="multidb-router",
        title="django-multidb-router: replicas in turn, and the primary for 15 s after a write",
        routers=["multidb.PinningReplicaRouter"],
        middleware=["multidb.middleware.PinningRouterMiddleware"],
        settings={"REPLICA_DATABASES": REPLICAS},
        modules=["multidb"],
        distribution="django-multidb-router",
    ),
    Contender(
        name="replicated",
        title="django-replicated: one random live replica a request, and the primary after POST",
        routers=["django_replicated.router.ReplicationRouter"],
        middleware=["django_replicated.middleware.ReplicationMiddleware"],
        settings={
            "REPLICATED_DATABASE_SLAVES": REPLICAS,
            # The package's own defaults, which it expects a site to import.
            "REPLICATED_CACHE_BACKEND": None,
            "REPLICATED_DATABASE_DOWNTIME": 60,
            "REPLICATED_VIEWS_OVERRIDES": {},
            "REPLICATED_READ_ONLY_DOWNTIME": 20,
            "REPLICATED_READ_ONLY_TRIES": 1,
            "REPLICATED_FORCE_MASTER_COOKIE_NAME": "just_updated",
            "REPLICATED_FORCE_MASTER_COOKIE_MAX_AGE": 5,
            "REPLICATED_FORCE_STATE_HEADER": "HTTP_X_REPLICATED_STATE",
            "REPLICATED_CHECK_STATE_ON_WRITE": True,
            "REPLICATED_FORCE_MASTER_COOKIE_STATUS_CODES": [302, 303],
            "REPLICATED_MANAGE_ATOMIC_REQUESTS": False,
        },
        modules=["django_replicated", "six"],
        distribution="django-replicated",
    ),
    Contender(
        name="rw-router",
        title="django-rw-router: a random replica, and the primary in a transaction",
        routers=["django_rw_router.routers.TransactionPrimaryReplicaRouter"],
        late_middleware=["django_rw_router.middleware.RequestContextMiddleware"],
        settings={"DJANGO_RW_ROUTER_READ_DBS": REPLICAS},
        modules=["django_rw_router"],
        distribution="django-rw-router",
    ),
    Contender(
        name="database-routing",
        title="django-database-routing: the one replica that settings name for each app",
        routers=["database_routing.PrimaryReplicaRouter"],
        settings={
            "PRIMARY_REPLICA_ROUTING": {label: {"read": "{replica}"} for label in _APP_LABELS}
        },
        modules=["database_routing"],
        distribution="django-database-routing",
    ),
    Contender(
        name="naive-lsn",
        title="asks the replica for its replay position on every read, and compares",
        routers=["benchmarks.naive.NaiveLsnRouter"],
        middleware=["benchmarks.naive.NaiveLsnMiddleware"],
    ),
    Contender(
        name="package",
        title="django-replica-router",
        routers=["django_replica_router.ReplicaRouter"],
        middleware=["django_replica_router.middleware.ReplicaRouterMiddleware"],
        apps=["django_replica_router"],
        distribution="django-replica-router",
    ),
    Contender(
        name="package+backend",
        title="django-replica-router with its database backend",
        routers=["django_replica_router.ReplicaRouter"],
        middleware=["django_replica_router.middleware.ReplicaRouterMiddleware"],
        apps=["django_replica_router"],
        engine="django_replica_router.backends.postgresql",
        modules=["django_replica_router.backends.postgresql"],
        distribution="django-replica-router",
    ),
)

CONSTANT = Contender(
    name="constant",
    title="a router that returns one alias: what Django's own part costs",
    routers=["benchmarks.naive.ConstantRouter"],
)
"""Not a way of routing, but the floor under the cost of a decision."""

BY_NAME = {contender.name: contender for contender in (*ALL, CONSTANT)}

UNFIT = {
    "django-pindb": "imports `django.utils.importlib`, which Django has not had since 1.9",
}
"""Packages of the same purpose that cannot run with a supported Django at all."""


def present(*names: str) -> list[Contender]:
    """Return the contenders that can take part, of those named or of all."""
    return [
        contender
        for contender in ALL
        if (not names or contender.name in names) and contender.missing is None
    ]


def left_out(*names: str) -> dict[str, str]:
    """Return the contenders that cannot take part, of those named or of all, with the reason."""
    return {
        contender.name: contender.missing
        for contender in ALL
        if (not names or contender.name in names) and contender.missing is not None
    }
