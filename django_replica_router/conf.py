"""The setting ``REPLICA_ROUTER`` and the topology, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import MappingProxyType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections
from django.utils.functional import empty
from django.utils.module_loading import import_string

from django_replica_router.errors import ConfigurationError
from django_replica_router.values.rules import RULES
from django_replica_router.values.topology import Found, Topology, arrange

SETTING = "REPLICA_ROUTER"
AGE_ERROR = 1.0
"""Seconds by which a replica may be older than its age says.

The primary's samples are of what is on its disk, which is behind asynchronous commits by up to three
times ``wal_writer_delay`` (0.6 s by default); the rest is for the sample itself."""


class SettingError(ConfigurationError):
    """A value of the setting that cannot be used.

    Args:
        code: id of the system check that reports it, such as "E001".
        message: one sentence that names the setting.
        hint: what to do.
    """

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(f"{message} {hint}")
        self.code = code
        self.message = message
        self.hint = hint


class _WorkedOut:
    """What each read asks of the settings: worked out at once, since a cached property is found by a slower way."""

    interval: float
    """Seconds between two readings.

    At most a quarter of ``MAX_LAG``: a replica's data is known to be as old as the latest
    reading at least, so a longer interval would rule out replicas that do not lag.
    """

    token_bound: float
    """Seconds beyond which a replica's data may lack a write whose token has expired."""

    shadows: bool
    """Whether there are readers who are not routed yet."""

    yields: bool
    """Whether what readers have seen, not written, may be given up to spare the primary."""

    replica_models: frozenset[str]
    """``REPLICA_MODELS`` in lower case: labels of apps and of models."""

    ordinary_models: set[Any]
    """The models that were found to be listed nowhere. Emptied with the setting."""

    topology: Topology
    """The clusters, from ``CLUSTERS`` or else from ``DATABASES``, with what was found by ``DISCOVERY``.

    Another one takes its place where servers come or go. It is not there without settings of Django's.
    """


@dataclass(frozen=True, kw_only=True)
class Config(_WorkedOut):
    """The values of ``REPLICA_ROUTER``, one field a key. Durations are seconds."""

    ENABLED: bool = True
    SHADOW: bool = False
    ROLLOUT: float = 1.0
    CLUSTERS: Mapping[str, Sequence[str] | Mapping[str, float]] | None = None
    DISCOVERY: Mapping[str, Mapping[str, Any]] | None = None
    MAX_LAG: float = 10.0
    WAIT: float = 0.05
    FALLBACK_LAG: float | None = None
    PRIMARY_SHARE: float = 1.0
    PRIMARY_DOWN: str = "fail"
    CONNECT_TIMEOUT: float = 0.5
    LOCK_WAIT: float | None = 1.0
    TOKEN_TTL: float = 60.0
    SESSION_TTL: float = 24 * 60 * 60.0
    INTERVAL: float = 1.0
    STORE_TIMEOUT: float = 0.25
    COOKIE: bool = False
    CACHE: str = "default"
    PRIMARY_ONLY: Sequence[str] = ()
    PRIMARY_VIEWS: Sequence[str] = ()
    REPLICA_VIEWS: Sequence[str] = ()
    REPLICA_MODELS: Sequence[str] = ()
    IGNORED_WRITES: Sequence[str] = ()
    MONOTONIC_READS: bool = True
    MONOTONIC_SHARE: float = 0.05
    SAFE_METHODS: Sequence[str] = ("GET", "HEAD", "OPTIONS", "TRACE")
    STALE_SAVES: str = "learn"
    BALANCER: str = "rendezvous"
    HEADER: str | None = None
    TOKEN_KEYS: Sequence[str] = ()
    IDENTITY: str | None = None
    SHARE_READINGS: bool = False
    SHARE_COUNTS: bool = False
    DEBUG: bool = False

    def __post_init__(self) -> None:
        self.__dict__.update(
            interval=min(self.INTERVAL, self.MAX_LAG / 4),
            token_bound=self.TOKEN_TTL - self.WAIT - AGE_ERROR,
            shadows=self.SHADOW or self.ROLLOUT < 1,
            yields=self.MONOTONIC_READS and self.MONOTONIC_SHARE < 1,
            replica_models=_in_lower_case(self.REPLICA_MODELS),
            ordinary_models=set(),
        )
        if settings.configured:
            self.arrange()

    @cached_property
    def routes_nobody(self) -> bool:
        """Whether the primary serves every reader, whatever is known of the replicas."""
        return not self.ENABLED or self.SHADOW or self.ROLLOUT <= 0

    @cached_property
    def primary_only(self) -> frozenset[str]:
        """``PRIMARY_ONLY`` in lower case: labels of apps and of models."""
        return _in_lower_case(self.PRIMARY_ONLY)

    @cached_property
    def views(self) -> dict[Any, Any]:
        """What ``PRIMARY_VIEWS`` and ``REPLICA_VIEWS`` ask for in a view, by its names, once it was asked."""
        return {}

    @cached_property
    def ignored_writes(self) -> frozenset[str]:
        """``IGNORED_WRITES`` in lower case: labels of apps and of models."""
        return _in_lower_case(self.IGNORED_WRITES)

    @cached_property
    def primary_tables(self) -> frozenset[str]:
        """The tables of models that ``PRIMARY_ONLY`` lists, and of sessions that a cache keeps.

        A statement that names one of them, in a join or through another model, is run on the primary.
        """
        if not apps.models_ready:
            return frozenset()  # the settings are read anew when the app is ready
        return frozenset(
            model._meta.db_table
            for model in apps.get_models(include_auto_created=True)
            if _is_listed(model._meta, self.primary_only) or _is_kept_in_a_cache(model)
        )

    @cached_property
    def _reserved_models(self) -> set[Any]:
        return set()

    @cached_property
    def _ignored_models(self) -> dict[Any, bool]:
        return {}

    def is_primary_only(self, model: Any) -> bool:
        """Tell whether the setting reserves reads of the model for the primary.

        The table of Django's database cache always is: a cache that forgets what was just put
        into it, or remembers what was deleted, is worse than a slow one. So are sessions that a
        cache keeps as they were read, and content types: Django keeps these in each process, by alias,
        so that replicas would cost a query and an object each.
        """
        if model in self.ordinary_models:
            return False
        if model in self._reserved_models:
            return True
        meta = getattr(model, "_meta", None)
        if meta is None:
            return False  # a raw query may be of no model
        is_reserved = (
            meta.app_label.lower() in {"django_cache", "contenttypes"}
            or _is_kept_in_a_cache(model)
            or _is_listed(meta, self.primary_only)
            or meta.db_table in self.primary_tables
        )
        if is_reserved:
            self._reserved_models.add(model)
        elif not self.wants_replica(model):
            self.ordinary_models.add(model)
        return is_reserved

    def wants_replica(self, model: Any) -> bool:
        """Tell whether ``REPLICA_MODELS`` has reads of the model go to replicas whatever the request does."""
        meta = getattr(model, "_meta", None) if self.replica_models else None
        return meta is not None and _is_listed(meta, self.replica_models)

    def ignores_writes(self, model: Any) -> bool:
        """Tell whether a write to the model's own table binds nobody.

        Nobody reads the table on a replica, or ``IGNORED_WRITES`` lists the model.
        """
        found = self._ignored_models.get(model)
        if found is None:
            meta: Any = getattr(model, "_meta", None)
            found = meta is not None and (
                meta.db_table in self.primary_tables or _is_listed(meta, self.ignored_writes)
            )
            # Where the database deletes along with its rows what is of other tables, it binds.
            found = found and not any(map(_is_deleted_along, meta.get_fields(include_hidden=True)))
            self._ignored_models[model] = found
        return found

    def arrange(self) -> None:
        """Arrange the clusters by what has been found until now."""
        if self.CLUSTERS is None:
            clusters = _mirrors()
        else:
            clusters = {
                primary: (
                    dict(replicas)
                    if isinstance(replicas, Mapping)
                    else dict.fromkeys(replicas, 1.0)
                )
                for primary, replicas in self.CLUSTERS.items()
            }
        self.__dict__["topology"] = arrange(clusters, self.DISCOVERY or {}, parsed.found)


def _in_lower_case(labels: Iterable[str]) -> frozenset[str]:
    return frozenset(label.lower() for label in labels)


def _is_listed(meta: Any, labels: frozenset[str]) -> bool:
    """Tell whether the labels, in lower case, name a model or its app."""
    app = meta.app_label.lower()
    return app in labels or f"{app}.{meta.model_name}" in labels


def _is_deleted_along(field: Any) -> bool:
    """Tell whether it is a relation of other rows that the database itself deletes or changes.

    ``DB_CASCADE`` and the like, of Django 6.1.
    """
    return hasattr(getattr(field, "on_delete", None), "on_delete_sql")


def session_model() -> Any:
    """Return the model of sessions that are rows of a database, or None."""
    try:
        store: Any = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
        find = getattr(store, "get_model_class", None)
        return None if find is None else find()
    except (ImportError, RuntimeError):
        return None  # Django, or the site's first request, says so


def _is_kept_in_a_cache(model: Any) -> bool:
    """Tell whether it is the model of sessions that the session engine puts into a cache when read.

    What a replica showed within its lag would be there for ``SESSION_COOKIE_AGE``, also where the
    session has been deleted meanwhile.
    """
    if not hasattr(model, "get_session_store_class"):  # every session model has it
        return False
    try:
        engine = import_module(settings.SESSION_ENGINE)
        caching = import_module("django.contrib.sessions.backends.cached_db")
    except ImportError:
        return False  # the site's own sessions will say so
    store = getattr(engine, "SessionStore", None)
    return isinstance(store, type) and issubclass(store, caching.SessionStore)


def _mirrors() -> dict[str, dict[str, float]]:
    """Return the clusters that ``TEST["MIRROR"]`` of the databases describes.

    It is Django's own way to say "this alias is a replica of that one".
    """
    clusters: dict[str, dict[str, float]] = {}
    for alias in connections:
        primary = connections.settings[alias].get("TEST", {}).get("MIRROR")
        if primary:
            clusters.setdefault(primary, {})[alias] = 1.0
    return clusters


def find_problems() -> Iterator[SettingError]:
    """Yield what is wrong with the form of the setting, key by key."""
    raw = getattr(settings, SETTING, None)
    if raw is None:
        return
    if not isinstance(raw, Mapping):
        yield SettingError(
            "E001",
            f"{SETTING} should be a dict, not {type(raw).__name__}.",
            "Write REPLICA_ROUTER = {} to use the defaults.",
        )
        return
    for key, value in raw.items():
        if key not in RULES:
            yield SettingError(
                "E002",
                f"{SETTING} has the unknown key {key!r}.",
                f"Use one of: {', '.join(sorted(RULES))}.",
            )
            continue
        is_valid, expected = RULES[key]
        if not is_valid(value):
            yield SettingError(
                "E003",
                f"{SETTING}[{key!r}] should be {expected}, not {value!r}.",
                "Correct the value, or remove the key to use the default.",
            )


class Parsed:
    """The parsed setting, kept as long as the setting is the same object; None before it is parsed."""

    __slots__ = ("config", "edition", "found", "raw")

    def __init__(self) -> None:
        self.raw: Any = None
        self.config: Config | None = None
        self.found: Mapping[str, Found] = MappingProxyType({})
        self.edition: object = None
        """Another object whenever the settings, or the servers that were found, are others: what was worked
        out of them holds as long as it is the same."""


parsed = Parsed()

_get_past_lazy = object.__getattribute__


def site_settings() -> Any:
    """Return the object behind Django's lazy settings, past that one's own way to look up attributes.

    That takes four times as long; and it is quick also where there is no such setting.
    """
    wrapped = _get_past_lazy(settings, "_wrapped")
    return settings if wrapped is empty else wrapped


def get_config() -> Config:
    """Return the present settings.

    Raises:
        ConfigurationError: names the key whose value cannot be used, and what is expected.
    """
    config = parsed.config
    # As ``site_settings`` does: without a call, since each request asks several times.
    raw = getattr(_get_past_lazy(settings, "_wrapped"), SETTING, None)
    if config is not None and parsed.raw is raw:
        return config
    raw = getattr(site_settings(), SETTING, None)
    reread()
    for problem in find_problems():
        raise problem
    config = Config(**(raw or {}))
    parsed.raw, parsed.config, parsed.edition = raw, config, object()
    if config.topology.found is not parsed.found:
        config.arrange()  # something was found while it was made
    return config


def find_found(alias: str) -> Found | None:
    """Return what was found by the name of an alias, or None where nothing was found yet."""
    return parsed.found.get(alias)


def note_found(alias: str, found: Found) -> None:
    """Let the topology follow what was found by the name of an alias.

    A decision that holds for the rest of a scope goes on to hold there.
    """
    if found != parsed.found.get(alias):
        parsed.found = {**parsed.found, alias: found}
    config = get_config()
    if config.topology.found is not parsed.found:
        config.arrange()
        parsed.edition = object()


_READ_SETTINGS = frozenset([SETTING, "DATABASES", "DATABASE_ROUTERS", "SESSION_ENGINE"])


def reread() -> None:
    """Have the settings read anew when they are next asked for."""
    _forget(setting=SETTING)


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in _READ_SETTINGS and parsed.config is not None:
        parsed.config.ordinary_models.clear()  # so that no shortcut is followed any more
        parsed.config, parsed.edition = None, object()


setting_changed.connect(_forget, dispatch_uid="django_replica_router.conf")
