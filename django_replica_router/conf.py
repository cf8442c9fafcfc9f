"""The setting ``REPLICA_ROUTER`` and the topology, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import MappingProxyType
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections
from django.utils.functional import empty

from django_replica_router.errors import ConfigurationError

SETTING = "REPLICA_ROUTER"
AGE_ERROR = 1.0
"""Seconds by which a replica may be older than its age says.

The primary's samples are of what is on its disk, which is behind asynchronous commits by up to three
times ``wal_writer_delay`` (0.6 s by default); the rest is for the sample itself."""

MAX_SECONDS = 1e9
"""Some thirty years: more than that no lock can wait, and no cache can keep."""

BALANCERS = ("rendezvous", "random", "round_robin", "least_in_flight")


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


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MAX_SECONDS


def _is_positive(value: object) -> bool:
    return _is_seconds(value) and value != 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(_is_text, value))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_optional_text(value: object) -> bool:
    return value is None or _is_text(value)


def _is_clusters(value: object) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(map(_is_text, value))
        and all(
            _is_texts(replicas)
            or (
                isinstance(replicas, Mapping)
                and all(map(_is_text, replicas))
                and all(map(_is_positive, replicas.values()))
            )
            for replicas in value.values()
        )
    )


_SECONDS = (_is_seconds, "a number of seconds, 0 or more")
_POSITIVE = (_is_positive, "a number of seconds above 0")
_OPTIONAL_SECONDS = (
    lambda value: value is None or _is_positive(value),
    "None or a number of seconds above 0",
)
_TEXTS = (_is_texts, "a list of strings")

_RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "ENABLED": (_is_bool, "True or False"),
    "CLUSTERS": (
        _is_clusters,
        "a dict of primary alias to a list of replica aliases, or to a dict of replica alias "
        "to a weight above 0",
    ),
    "MAX_LAG": _POSITIVE,
    "WAIT": _SECONDS,
    "FALLBACK_LAG": _OPTIONAL_SECONDS,
    "PRIMARY_SHARE": (
        lambda value: _is_seconds(value) and value <= 1,  # type: ignore[operator]
        "a number from 0 to 1",
    ),
    "PRIMARY_DOWN": (lambda value: value in ("fail", "replicas"), "'fail' or 'replicas'"),
    "CONNECT_TIMEOUT": _POSITIVE,
    "LOCK_WAIT": _OPTIONAL_SECONDS,
    "TOKEN_TTL": _POSITIVE,
    "SESSION_TTL": _POSITIVE,
    "INTERVAL": _POSITIVE,
    "STORE_TIMEOUT": _POSITIVE,
    "COOKIE": (_is_bool, "True or False"),
    "CACHE": (_is_text, "the alias of a cache"),
    "PRIMARY_ONLY": _TEXTS,
    "MONOTONIC_READS": (_is_bool, "True or False"),
    "SAFE_METHODS": _TEXTS,
    "STALE_SAVES": (
        lambda value: value in ("learn", "warn", "raise", "ignore"),
        "'learn', 'warn', 'raise' or 'ignore'",
    ),
    "BALANCER": (_is_text, f"one of {', '.join(BALANCERS)}, or the dotted path of a callable"),
    "IDENTITY": (_is_optional_text, "None or the dotted path of a callable"),
    "SHARE_READINGS": (_is_bool, "True or False"),
    "DEBUG": (_is_bool, "True or False"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The values of ``REPLICA_ROUTER``, one field a key. Durations are seconds."""

    ENABLED: bool = True
    CLUSTERS: Mapping[str, Sequence[str] | Mapping[str, float]] | None = None
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
    MONOTONIC_READS: bool = True
    SAFE_METHODS: Sequence[str] = ("GET", "HEAD", "OPTIONS", "TRACE")
    STALE_SAVES: str = "learn"
    BALANCER: str = "rendezvous"
    IDENTITY: str | None = None
    SHARE_READINGS: bool = False
    DEBUG: bool = False

    @cached_property
    def interval(self) -> float:
        """Seconds between two readings.

        At most a quarter of ``MAX_LAG``: a replica's data is known to be as old as the latest
        reading at least, so a longer interval would rule out replicas that do not lag.
        """
        return min(self.INTERVAL, self.MAX_LAG / 4)

    @cached_property
    def primary_only(self) -> frozenset[str]:
        """``PRIMARY_ONLY`` in lower case: labels of apps and of models."""
        return frozenset(label.lower() for label in self.PRIMARY_ONLY)

    @cached_property
    def ordinary_models(self) -> set[Any]:
        """The models that were found not to be reserved for the primary. Emptied with the setting."""
        return set()

    @cached_property
    def _reserved_models(self) -> set[Any]:
        return set()

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
        app = meta.app_label.lower()
        is_reserved = (
            app in {"django_cache", "contenttypes"}
            or _is_kept_in_a_cache(model)
            or app in self.primary_only
            or f"{app}.{meta.model_name}" in self.primary_only
        )
        (self._reserved_models if is_reserved else self.ordinary_models).add(model)
        return is_reserved

    @cached_property
    def topology(self) -> Topology:
        """The clusters, from ``CLUSTERS`` or else from ``DATABASES``."""
        if self.CLUSTERS is None:
            return Topology(_mirrors())
        return Topology(
            {
                primary: (
                    dict(replicas)
                    if isinstance(replicas, Mapping)
                    else dict.fromkeys(replicas, 1.0)
                )
                for primary, replicas in self.CLUSTERS.items()
            }
        )


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


class Topology:
    """Which alias is a primary, which is a replica of whom.

    Args:
        clusters: for each primary, the weight of each of its replicas.
    """

    def __init__(self, clusters: Mapping[str, Mapping[str, float]]) -> None:
        self.clusters = MappingProxyType(clusters)
        self.replicas = MappingProxyType(
            {primary: tuple(clusters[primary]) for primary in clusters}
        )
        """For each primary, the aliases of its replicas."""
        self.primary_of: Mapping[str, str] = MappingProxyType(
            {primary: primary for primary in clusters}
            | {replica: primary for primary in clusters for replica in clusters[primary]}
        )
        """The primary of every alias of every cluster. A primary is its own."""

    def is_replica(self, alias: str) -> bool:
        """Tell whether the alias is a replica of some primary."""
        name = str(alias)  # a routed alias is unequal to none of its cluster
        return self.primary_of.get(name, name) != name


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


def _raw() -> Any:
    raw = getattr(settings, SETTING, None)
    return {} if raw is None else raw


def find_problems() -> Iterator[SettingError]:
    """Yield what is wrong with the form of the setting, key by key."""
    raw = _raw()
    if not isinstance(raw, Mapping):
        yield SettingError(
            "E001",
            f"{SETTING} should be a dict, not {type(raw).__name__}.",
            "Write REPLICA_ROUTER = {} to use the defaults.",
        )
        return
    for key, value in raw.items():
        if key not in _RULES:
            yield SettingError(
                "E002",
                f"{SETTING} has the unknown key {key!r}.",
                f"Use one of: {', '.join(sorted(_RULES))}.",
            )
            continue
        is_valid, expected = _RULES[key]
        if not is_valid(value):
            yield SettingError(
                "E003",
                f"{SETTING}[{key!r}] should be {expected}, not {value!r}.",
                "Correct the value, or remove the key to use the default.",
            )


class _Cache:
    """The parsed setting, kept as long as the setting is the same object."""

    raw: Any = None
    config: Config | None = None


def get_config() -> Config:
    """Return the present settings.

    Raises:
        ConfigurationError: names the key whose value cannot be used, and what is expected.
    """
    # Of the object behind the lazy one, past that one's own way to look up attributes: that is quick
    # also where there is no such setting.
    wrapped = object.__getattribute__(settings, "_wrapped")
    raw = getattr(settings if wrapped is empty else wrapped, SETTING, None)
    config = _Cache.config
    if config is not None and _Cache.raw is raw:
        return config
    _forget(setting=SETTING)
    for problem in find_problems():
        raise problem
    config = Config(**(raw or {}))
    _Cache.raw, _Cache.config = raw, config
    return config


_READ_SETTINGS = frozenset([SETTING, "DATABASES", "DATABASE_ROUTERS", "SESSION_ENGINE"])


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in _READ_SETTINGS and _Cache.config is not None:
        _Cache.config.ordinary_models.clear()  # so that no shortcut is followed any more
        _Cache.config = None


setting_changed.connect(_forget, dispatch_uid="django_replica_router.conf")
