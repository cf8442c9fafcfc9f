"""System checks: what is wrong with the configuration, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.apps.config import AppConfig
from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import checks
from django.db import connections
from django.utils.module_loading import import_string
from psycopg import IsolationLevel

from django_replica_router.conf import AGE_ERROR, Config, find_problems, get_config, session_model
from django_replica_router.errors import StoreError, tell_import_failure
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.packages import find_neighbours, pool_of
from django_replica_router.replicas.lookups import is_available
from django_replica_router.replicas.mirrors import differences
from django_replica_router.routers import ReplicaRouter
from django_replica_router.sql.opening import is_under_test
from django_replica_router.stores.store import TokenStore, get_store
from django_replica_router.values.rules import BALANCERS

APP = "django_replica_router"
_ROUTER = f"{APP}.ReplicaRouter"
_MIDDLEWARE = f"{APP}.middleware.ReplicaRouterMiddleware"
_OBSERVERS = (
    "debug_toolbar.middleware.DebugToolbarMiddleware",
    f"{APP}.contrib.server_timing.ServerTimingMiddleware",
    f"{APP}.contrib.sqlcommenter.SqlCommenterMiddleware",
    f"{APP}.contrib.opentelemetry.spans.ReplicaSpanMiddleware",
)
"""Middlewares that belong in front: they look at what the request does, and read and write nothing themselves."""
_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


def _error(code: str, message: str, hint: str) -> checks.CheckMessage:
    return checks.Error(message, hint=hint, id=f"{APP}.{code}")


def _warning(code: str, message: str, hint: str) -> checks.CheckMessage:
    return checks.Warning(message, hint=hint, id=f"{APP}.{code}")


def check_settings(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Check the setting, and the settings of Django that the package depends on."""
    problems = [_error(p.code, p.message, p.hint) for p in find_problems()]
    if problems:
        return problems
    config = get_config()
    return [
        *_check_topology(config),
        *_check_discovery(config),
        *_check_engines(config),
        *_check_pools(config),
        *_check_neighbours(config),
        *_check_times(config),
        *_check_names(config),
        *_check_cache(config),
        *_check_router(),
        *_check_middleware(),
        *_check_atomic_requests(config),
        *_check_sessions(config),
    ]


def _check_topology(config: Config) -> Iterator[checks.CheckMessage]:
    clusters = config.topology.clusters
    where = "TEST['MIRROR']" if config.CLUSTERS is None else "REPLICA_ROUTER['CLUSTERS']"
    seen: dict[str, str] = {}
    if not any(clusters.values()):
        yield _warning(
            "W001",
            "No replica is configured: every read goes to the primary.",
            "Set TEST = {'MIRROR': 'default'} on the alias of a replica in DATABASES.",
        )
    for primary, replicas in clusters.items():
        for alias in (primary, *replicas):
            if alias not in connections:
                yield _error(
                    "E004",
                    f"{where} names {alias!r}, which is not in DATABASES.",
                    f"Use one of: {', '.join(sorted(connections))}.",
                )
        for alias in replicas:
            if alias == primary:
                yield _error(
                    "E005",
                    f"{where} makes {alias!r} a replica of itself.",
                    "Name the alias of its primary.",
                )
            elif alias in clusters:
                yield _error(
                    "E005",
                    f"{where} makes {alias!r} a replica of {primary!r} and a primary as well.",
                    "Name the primary at the head of the chain for every replica of it.",
                )
            elif seen.setdefault(alias, primary) != primary:
                yield _error(
                    "E005",
                    f"{where} makes {alias!r} a replica of both {seen[alias]!r} and {primary!r}.",
                    "Name it under the one primary that it follows.",
                )


def _check_discovery(config: Config) -> Iterator[checks.CheckMessage]:
    for alias in config.DISCOVERY or ():
        if alias not in connections or not config.topology.is_replica(alias):
            yield _error(
                "E013",
                f"REPLICA_ROUTER['DISCOVERY'] names {alias!r}, which is no replica.",
                "Name the alias of a replica: each server that is found gets its settings.",
            )
        elif "," in f"{connections.settings[alias]['HOST']}{connections.settings[alias]['PORT']}":
            yield _error(
                "E013",
                f"REPLICA_ROUTER['DISCOVERY'] names {alias!r}, whose HOST or PORT lists several.",
                "Give it one HOST: each server that is found is reached at its own address.",
            )
    if config.DISCOVERY and not is_available():
        yield _error(
            "E014",
            "REPLICA_ROUTER['DISCOVERY'] needs dnspython, which is not installed.",
            "Run 'pip install \"django-replica-router[discovery]\"'.",
        )


def _check_engines(config: Config) -> Iterator[checks.CheckMessage]:
    for alias in config.topology.primary_of:
        if alias not in connections:
            continue
        connection: Any = connections[alias]
        driver = getattr(getattr(connection, "Database", None), "__name__", "?")
        if connection.vendor != "postgresql":
            problem = f"is {connection.display_name}"
        elif driver != "psycopg":
            problem = f"uses the driver {driver}"
        else:
            continue
        yield _warning(
            "W002",
            f"The database {alias!r} {problem}: no replica of its cluster will ever serve a read.",
            "Use PostgreSQL with psycopg 3 ('pip install \"psycopg[binary]\"').",
        )


def _check_pools(config: Config) -> Iterator[checks.CheckMessage]:
    for alias in config.topology.primary_of:
        package = pool_of(connections[alias]) if alias in connections else None
        if package is not None:
            yield _warning(
                "W012",
                f"The database {alias!r} takes its connections from {package}, which hides the "
                f"driver's own: no replica of its cluster will ever serve a read.",
                "Use Django's own engine, with psycopg's pool: OPTIONS = {'pool': True} ('pip install "
                "psycopg[pool]').",
            )


def _check_neighbours(config: Config) -> Iterator[checks.CheckMessage]:
    for found in find_neighbours(config):
        yield _warning(found.code, found.message, found.hint)


def _check_times(config: Config) -> Iterator[checks.CheckMessage]:
    if config.TOKEN_TTL <= config.MAX_LAG + config.WAIT + AGE_ERROR:
        yield _error(
            "E006",
            f"REPLICA_ROUTER['TOKEN_TTL'] ({config.TOKEN_TTL:g} s) should be more than MAX_LAG "
            f"plus WAIT plus {AGE_ERROR:g} s ({config.MAX_LAG:g} s + {config.WAIT:g} s + "
            f"{AGE_ERROR:g} s).",
            "A token that expires while a replica may still lag behind it protects nobody: raise "
            "TOKEN_TTL or lower MAX_LAG.",
        )


def _check_names(config: Config) -> Iterator[checks.CheckMessage]:
    paths = {"IDENTITY": config.IDENTITY}
    if config.BALANCER not in BALANCERS:
        paths["BALANCER"] = config.BALANCER
    for key, path in paths.items():
        if path is None:
            continue
        try:
            found: Any = import_string(path)
        except ImportError as error:
            yield _error(
                "E007",
                tell_import_failure(key, path, error),
                "Give the dotted path of a callable.",
            )
            continue
        if not callable(found):
            yield _error(
                "E007",
                f"REPLICA_ROUTER[{key!r}] names {path!r}, which is not callable.",
                "Give the dotted path of a callable.",
            )
    for key in ("PRIMARY_ONLY", "IGNORED_WRITES"):
        for label in getattr(config, key):
            if not _is_app_or_model(label):
                yield _error(
                    "E008",
                    f"REPLICA_ROUTER[{key!r}] names {label!r}, which is no app and no model.",
                    "Give the label of an app ('auth') or of a model ('auth.User').",
                )


def _is_app_or_model(label: str) -> bool:
    # In any case, as the setting is read.
    app, dot, model = label.lower().partition(".")
    return any(
        config.label.lower() == app and (not dot or model in config.models)
        for config in apps.get_app_configs()
    )


def _check_cache(config: Config) -> Iterator[checks.CheckMessage]:
    if config.CACHE not in settings.CACHES:
        yield _error(
            "E009",
            f"REPLICA_ROUTER['CACHE'] names {config.CACHE!r}, which is not in CACHES.",
            f"Use one of: {', '.join(sorted(settings.CACHES))}.",
        )
        return
    try:
        get_store(config.CACHE)
    except StoreError as error:
        yield _error("E010", f"The cache {config.CACHE!r} cannot be used: {error}", "Mend CACHES.")


def check_deployment(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Check what is fine on a developer's machine, and not in production."""
    if any(find_problems()):
        return []  # the check of the settings tells of them
    name = get_config().CACHE
    try:
        store = get_store(name)
    except StoreError:
        return []  # E009 and E010 tell
    return [*_check_kind(name, store)] or [*_check_server(name, store)]


def _check_kind(name: str, store: TokenStore) -> Iterator[checks.CheckMessage]:
    cache = f"The cache {name!r} ({settings.CACHES[name].get('BACKEND', '')})"
    if not store.is_lasting:
        yield _warning(
            "W003",
            f"{cache} is not shared between processes: what a user writes in one is not known in another.",
            "Use Redis or Valkey in production, as with django-redis.",
        )
    elif not store.is_atomic:
        yield _warning(
            "W004",
            f"{cache} has no atomic merge: of two tokens of one user that are stored at the same "
            f"moment, the higher one may be lost.",
            "Use Redis or Valkey, as with django-redis.",
        )


def _check_server(name: str, store: TokenStore) -> Iterator[checks.CheckMessage]:
    refusal = store.find_refusal()
    if refusal is not None:
        yield _error(
            "E012", f"The cache {name!r} does not keep tokens: {refusal}.", "Mend CACHES, or it."
        )
        return
    policy = store.eviction_policy()
    if policy is not None:
        yield _warning(
            "W010",
            f"The server of the cache {name!r} drops keys when its memory is full "
            f"(maxmemory-policy {policy}): a reader whose record is missing costs the primary a "
            f"question, and is served by replicas once they have all that it has then.",
            "Set maxmemory-policy noeviction, or give the tokens a server of their own that has "
            "it: who has no record there has written nothing.",
        )


def _find(paths: Sequence[Any], wanted: str, kind: type[Any]) -> int | None:
    """Return the place of a class, or of a subclass of it, in a list of dotted paths."""
    for place, path in enumerate(paths):
        if path == wanted:
            return place
        try:
            found = import_string(path) if isinstance(path, str) else type(path)
        except ImportError:
            continue  # Django's own checks, or its start, complain of it
        if isinstance(found, type) and issubclass(found, kind):
            return place
    return None


def _check_router() -> Iterator[checks.CheckMessage]:
    if _find(settings.DATABASE_ROUTERS, _ROUTER, ReplicaRouter) is None:
        yield _warning(
            "W005",
            "The router is not in DATABASE_ROUTERS: nothing is routed.",
            f"Add {_ROUTER!r} to DATABASE_ROUTERS.",
        )


def _check_middleware() -> Iterator[checks.CheckMessage]:
    mine = _find(settings.MIDDLEWARE, _MIDDLEWARE, ReplicaRouterMiddleware)
    if mine is None:
        yield _warning(
            "W006",
            "The middleware is not in MIDDLEWARE: requests read from the primary only.",
            f"Put {_MIDDLEWARE!r} first in MIDDLEWARE.",
        )
    elif _find(settings.MIDDLEWARE[:mine], _SESSIONS, SessionMiddleware) is not None:
        yield _error(
            "E011",
            "The middleware is inside SessionMiddleware, which writes after it has finished.",
            f"Put {_MIDDLEWARE!r} first in MIDDLEWARE.",
        )
    elif outside := [name for name in settings.MIDDLEWARE[:mine] if name not in _OBSERVERS]:
        yield _warning(
            "W007",
            f"The middleware is not first in MIDDLEWARE: what {outside[0]!r} reads and "
            f"writes is outside of it.",
            f"Put {_MIDDLEWARE!r} first in MIDDLEWARE.",
        )


def _check_atomic_requests(config: Config) -> Iterator[checks.CheckMessage]:
    for alias, primary in config.topology.primary_of.items():
        if alias not in connections or not connections.settings[alias].get("ATOMIC_REQUESTS"):
            continue
        level = connections.settings[alias]["OPTIONS"].get("isolation_level")
        if alias != primary:
            yield _warning(
                "W009",
                f"ATOMIC_REQUESTS of the replica {alias!r} means nothing: no view needs a transaction "
                f"there, and none is opened.",
                f"Remove it from {alias!r}.",
            )
        elif isinstance(level, int) and level > IsolationLevel.READ_COMMITTED:
            yield _warning(
                "W008",
                f"ATOMIC_REQUESTS of {alias!r}, with an isolation level above READ COMMITTED, keeps "
                f"every read of every view on the primary.",
                "Leave the level at READ COMMITTED, and set a higher one in the transactions that need "
                "it; or mark views that only read with @transaction.non_atomic_requests.",
            )


def _check_sessions(config: Config) -> Iterator[checks.CheckMessage]:
    model = session_model() if settings.SESSION_SAVE_EVERY_REQUEST else None
    if model is None or not any(config.topology.replicas.values()):
        return
    if not config.is_primary_only(model):
        label = model._meta.app_label
        yield _warning(
            "W019",
            "SESSION_SAVE_EVERY_REQUEST writes a row of the database in every request: who was here a "
            "moment ago reads from the primary.",
            f"Add {label!r} to REPLICA_ROUTER['PRIMARY_ONLY']: then only sessions are read there, and "
            f"writing them binds nobody.",
        )


def check_mirrors(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[checks.CheckMessage]:
    """Check, in a test run, that what mirrors a primary is the primary's test database.

    Outside of one, a replica has an address of its own.
    """
    if any(find_problems()) or not is_under_test():
        return []
    primary_of = get_config().topology.primary_of
    return [
        _warning(
            "W011",
            f"In this test run {alias!r} is not the test database of {primary_of[alias]!r}: it has "
            f"another {' and '.join(parts)}. What a test reads from it by name is no row of the test.",
            f"TEST['MIRROR'] copies only the NAME: give {alias!r} the HOST and PORT of "
            f"{primary_of[alias]!r} in the settings of your tests, or call "
            f"{APP}.testing.point_mirrors_to_primaries() before them.",
        )
        for alias in databases or ()
        if alias in primary_of and (parts := differences(alias, primary_of[alias]))
    ]


def register() -> None:
    """Register the checks with Django."""
    checks.register(check_settings, APP)
    checks.register(check_deployment, APP, deploy=True)
    checks.register(check_mirrors, checks.Tags.database)
