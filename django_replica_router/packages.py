"""Other packages that need a setting beside this one, and which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.db import connections

from django_replica_router.conf import Config

POOLS = ("dj_db_conn_pool", "django_db_geventpool")
"""Packages whose connections are not the driver's, or take options that only they know."""


class Neighbour(NamedTuple):
    """A package, and what is wrong beside it.

    Args:
        code: id of the check.
        app: label of its app; empty where it need not be installed as one.
        is_wrong: tells whether the settings lack what is needed.
        message: what happens.
        hint: the setting that mends it.
    """

    code: str
    app: str
    is_wrong: Callable[[Config], bool]
    message: str
    hint: str


def pool_of(connection: Any) -> str | None:
    """Return the package of a pool that the connection's class is of, or None."""
    for kind in type(connection).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in POOLS:
            return package
    return None


def _reads_from_replicas(label: str, config: Config) -> bool:
    return not all(
        config.is_primary_only(model) for model in apps.get_app_config(label).get_models()
    )


def _flags_are_old(config: Config) -> bool:
    return _reads_from_replicas("waffle", config) and not getattr(
        settings, "WAFFLE_READ_FROM_WRITE_DB", False
    )


def _settings_are_old(config: Config) -> bool:
    backend = str(getattr(settings, "CONSTANCE_BACKEND", ""))
    is_cached = getattr(settings, "CONSTANCE_DATABASE_CACHE_BACKEND", None)
    return (
        backend.endswith(".DatabaseBackend")
        and bool(is_cached)
        and _reads_from_replicas("constance", config)
    )


def _cached_models() -> Iterator[Any]:
    """Return the models that cacheops keeps without being asked to each time."""
    raw = getattr(settings, "CACHEOPS", None) or {}
    defaults = getattr(settings, "CACHEOPS_DEFAULTS", None) or {}
    profiles = {key.lower(): value and {**defaults, **value} for key, value in raw.items()}
    for model in apps.get_models():
        label = model._meta.label_lower
        guesses = (label, f"{model._meta.app_label.lower()}.*", "*.*")
        profile = next((profiles[guess] for guess in guesses if guess in profiles), None)
        if profile and profile.get("ops"):
            yield model


def _cached_rows_are_old(config: Config) -> bool:
    return getattr(settings, "CACHEOPS_ENABLED", True) and any(
        not config.is_primary_only(model) for model in _cached_models()
    )


def _caches_replicas(config: Config) -> bool:
    databases = getattr(settings, "CACHALOT_DATABASES", "supported_only")
    names = connections if isinstance(databases, str) else databases
    is_on = getattr(settings, "CACHALOT_ENABLED", True)
    return is_on and any(config.topology.is_replica(alias) for alias in names)


def _tenants_differ(config: Config) -> bool:
    return not getattr(settings, "EXTRA_SET_TENANT_METHOD_PATH", None)


def _knows_no_cookie(config: Config) -> bool:
    names = [
        (getattr(settings, "REST_AUTH", None) or {}).get("JWT_AUTH_COOKIE"),
        (getattr(settings, "SIMPLE_JWT", None) or {}).get("AUTH_COOKIE"),
        getattr(settings, "JWT_AUTH_COOKIE", None),
    ]
    return any(names) and not config.COOKIE and config.IDENTITY is None


def _captcha_is_missing(config: Config) -> bool:
    return not config.COOKIE and _reads_from_replicas("captcha", config)


def _baskets_are_lost(config: Config) -> bool:
    # Its own name, for many a shop has an app that is called so.
    is_of_oscar = hasattr(settings, "OSCAR_BASKET_COOKIE_OPEN")
    return is_of_oscar and not config.COOKIE and _reads_from_replicas("basket", config)


def _cms_reads_from_replicas(config: Config) -> bool:
    # Both labels: one of them alone may be an app of the site.
    return "cms" in apps.app_configs and _reads_from_replicas("cms", config)


def _menus_are_old(config: Config) -> bool:
    durations = getattr(settings, "CMS_CACHE_DURATIONS", None)
    keeps = durations is None or any(durations.get(what) for what in ("menus", "content"))
    return keeps and _cms_reads_from_replicas(config)


def _apphooks_are_old(config: Config) -> bool:
    if not _cms_reads_from_replicas(config):
        return False
    try:
        hooks = import_module("cms.apphook_pool").apphook_pool.get_apphooks()
        load = import_module("cms.appresolver").get_app_patterns
    except (ImportError, AttributeError):
        return False
    return bool(hooks) and not hasattr(load, "__wrapped__")


def _history_is_old(config: Config) -> bool:
    # It has a model where DEBUG_TOOLBAR_CONFIG keeps the history in the database, and else none.
    return _reads_from_replicas("debug_toolbar", config)


def _celery_is_left_out(config: Config) -> bool:
    is_used = any(name.startswith("CELERY_") for name in dir(settings))
    return is_used and not apps.is_installed("django_replica_router.contrib.celery")


def _tasks_are_left_out(config: Config) -> bool:
    backends = getattr(settings, "TASKS", None) or {}
    is_elsewhere = any(
        not str(backend.get("BACKEND", "")).endswith((".ImmediateBackend", ".DummyBackend"))
        for backend in backends.values()
    )
    return is_elsewhere and not apps.is_installed("django_replica_router.contrib.django_tasks")


_SHARED = "See docs/shared-caches.md."
_APPLICATIONS = "See docs/applications.md."

NEIGHBOURS = (
    Neighbour(
        "W013",
        "waffle",
        _flags_are_old,
        "waffle keeps in the cache, for everybody, flags that it has read from a replica: what was "
        "changed a moment ago may stay as it was.",
        f"Add 'waffle' to REPLICA_ROUTER['PRIMARY_ONLY'], or set WAFFLE_READ_FROM_WRITE_DB. {_SHARED}",
    ),
    Neighbour(
        "W014",
        "cacheops",
        _cached_rows_are_old,
        "cacheops keeps in the cache, for everybody, rows that it has read from a replica: what was "
        "changed a moment ago may stay as it was until it times out.",
        f"Add the apps and models that CACHEOPS names to REPLICA_ROUTER['PRIMARY_ONLY']. {_SHARED}",
    ),
    Neighbour(
        "W015",
        "cachalot",
        _caches_replicas,
        "cachalot keeps what it reads by the alias of the database: a write to the primary leaves "
        "what it keeps of a replica as it is.",
        f"Set CACHALOT_DATABASES to the aliases of primaries, as ['default']. {_SHARED}",
    ),
    Neighbour(
        "W016",
        "django_tenants",
        _tenants_differ,
        "django-tenants sets the schema of a tenant on the connection to the primary only: a request "
        "of a tenant reads there alone (with releases before 4, a replica may show other rows).",
        f"Set EXTRA_SET_TENANT_METHOD_PATH to a function that sets it on the replicas too. {_SHARED}",
    ),
    Neighbour(
        "W017",
        "",
        _knows_no_cookie,
        "The settings name a cookie with a JWT: the package does not know users by it, so the row of "
        "one who has just registered may be missing on a replica (401).",
        "Set REPLICA_ROUTER['COOKIE'] to True, or name the user by 'IDENTITY'.",
    ),
    Neighbour(
        "W018",
        "captcha",
        _captcha_is_missing,
        "A form with a captcha stores a row that the next requests read: without a session, it may "
        "be missing on a replica.",
        "Set REPLICA_ROUTER['COOKIE'] to True, or add 'captcha' to 'PRIMARY_ONLY'.",
    ),
    Neighbour(
        "W020",
        "",
        _celery_is_left_out,
        "There are settings of Celery, and nothing carries tokens to its workers: all that a task "
        "reads, it reads from the primary.",
        "Add 'django_replica_router.contrib.celery' to INSTALLED_APPS. See docs/tasks.md.",
    ),
    Neighbour(
        "W021",
        "",
        _tasks_are_left_out,
        "TASKS names a backend with workers, and nothing carries tokens to them: all that a task "
        "reads, it reads from the primary.",
        "Add 'django_replica_router.contrib.django_tasks' to INSTALLED_APPS. See docs/tasks.md.",
    ),
    Neighbour(
        "W022",
        "basket",
        _baskets_are_lost,
        "django-oscar drops the basket of a visitor without a session where its row is missing, as "
        "on a replica a moment after it was created.",
        "Set REPLICA_ROUTER['COOKIE'] to True. See docs/applications.md.",
    ),
    Neighbour(
        "W023",
        "menus",
        _menus_are_old,
        "django CMS keeps in the cache, for everybody, menus, pages and their addresses that it has read "
        "from a replica: what was changed a moment ago may stay as it was, in menus for an hour.",
        f"Set CMS_CACHE_DURATIONS to 0 for 'menus' and 'content'. {_APPLICATIONS}",
    ),
    Neighbour(
        "W024",
        "menus",
        _apphooks_are_old,
        "A process of django CMS keeps the addresses of apphooks that it has read from a replica: what was "
        "hooked to a page a moment ago may be missing there for as long as the process lives.",
        f"Put use_primary around cms.appresolver.get_app_patterns. {_APPLICATIONS}",
    ),
    Neighbour(
        "W025",
        "debug_toolbar",
        _history_is_old,
        "django-debug-toolbar keeps its history in the database: where it is read from a replica, the last "
        "request is missing, and who writes it reads everything else from the primary.",
        "Add 'debug_toolbar' to 'PRIMARY_ONLY'. See docs/observing.md.",
    ),
    Neighbour(
        "W026",
        "constance",
        _settings_are_old,
        "constance keeps in the cache, for everybody and for a day, settings that it has read from a replica: "
        "what was changed a moment ago may stay as it was.",
        f"Add 'constance' to REPLICA_ROUTER['PRIMARY_ONLY']. {_SHARED}",
    ),
)


def find_neighbours(config: Config) -> Iterator[Neighbour]:
    """Return the packages that are installed, and lack the setting that they need."""
    for neighbour in NEIGHBOURS:
        if neighbour.app and neighbour.app not in apps.app_configs:
            continue
        if neighbour.is_wrong(config):
            yield neighbour
