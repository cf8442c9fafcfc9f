"""What each key of the setting ``REPLICA_ROUTER`` may be."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_SECONDS = 1e9
"""Some thirty years: more than that no lock can wait, and no cache can keep."""

BALANCERS = ("rendezvous", "random", "round_robin", "least_in_flight")


def is_seconds(value: object) -> bool:
    """Tell whether a value is a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MAX_SECONDS


def _is_positive(value: object) -> bool:
    return is_seconds(value) and value != 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(_is_text, value))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_optional_text(value: object) -> bool:
    return value is None or _is_text(value)


def _is_header(value: object) -> bool:
    return value is None or (
        isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]+", value) is not None
    )


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


_DNS_NAME = re.compile(r"[^.\s]{1,63}(\.[^.\s]{1,63})*\.?")


def _is_address(value: object) -> bool:
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


_OF_NAME: Mapping[str, Callable[[Any], bool]] = {
    "NAME": lambda value: _is_text(value) and _DNS_NAME.fullmatch(value) is not None,
    "TYPE": lambda value: value in ("A", "AAAA", "SRV"),
    "NAMESERVER": _is_address,
    "PORT": lambda value: type(value) is int and 0 < value < 1 << 16,
    "INTERVAL": _is_positive,
}


def _is_discovery(value: object) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(map(_is_text, value))
        and all(
            isinstance(entry, Mapping)
            and "NAME" in entry
            and all(key in _OF_NAME and _OF_NAME[key](given) for key, given in entry.items())
            for entry in value.values()
        )
    )


_SECONDS = (is_seconds, "a number of seconds, 0 or more")
_POSITIVE = (_is_positive, "a number of seconds above 0")
_OPTIONAL_SECONDS = (
    lambda value: value is None or _is_positive(value),
    "None or a number of seconds above 0",
)
_TEXTS = (_is_texts, "a list of strings")
_SHARE = (
    lambda value: is_seconds(value) and value <= 1,
    "a number from 0 to 1",
)

RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "ENABLED": (_is_bool, "True or False"),
    "SHADOW": (_is_bool, "True or False"),
    "ROLLOUT": _SHARE,
    "CLUSTERS": (
        _is_clusters,
        "a dict of primary alias to a list of replica aliases, or to a dict of replica alias "
        "to a weight above 0",
    ),
    "DISCOVERY": (
        _is_discovery,
        "None or a dict of replica alias to a dict with NAME (a DNS name) and, where it should not be "
        "the default, TYPE ('A', 'AAAA' or 'SRV'), NAMESERVER (an IP address), PORT (1 to 65535) and "
        "INTERVAL (seconds above 0)",
    ),
    "MAX_LAG": _POSITIVE,
    "WAIT": _SECONDS,
    "FALLBACK_LAG": _OPTIONAL_SECONDS,
    "PRIMARY_SHARE": _SHARE,
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
    "PRIMARY_VIEWS": _TEXTS,
    "REPLICA_VIEWS": _TEXTS,
    "REPLICA_MODELS": _TEXTS,
    "IGNORED_WRITES": _TEXTS,
    "MONOTONIC_READS": (_is_bool, "True or False"),
    "MONOTONIC_SHARE": _SHARE,
    "SAFE_METHODS": _TEXTS,
    "STALE_SAVES": (
        lambda value: value in ("learn", "warn", "raise", "ignore"),
        "'learn', 'warn', 'raise' or 'ignore'",
    ),
    "BALANCER": (_is_text, f"one of {', '.join(BALANCERS)}, or the dotted path of a callable"),
    "HEADER": (_is_header, "None or the name of a header, of letters, digits and hyphens"),
    "TOKEN_KEYS": _TEXTS,
    "IDENTITY": (_is_optional_text, "None or the dotted path of a callable"),
    "SHARE_READINGS": (_is_bool, "True or False"),
    "SHARE_COUNTS": (_is_bool, "True or False"),
    "DEBUG": (_is_bool, "True or False"),
}
"""Of each key: tells whether a value can be used, and in words what is expected."""
