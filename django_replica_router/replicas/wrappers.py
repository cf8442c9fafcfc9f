"""Django's connections of the calling thread, found in a tenth of the time that Django takes.

Its handler looks whether an event loop is running, by an exception where there is none, each time that it is
asked (asgiref's ``Local``). A first decision asks for two of them.
"""

from __future__ import annotations

import threading
from asyncio import _get_running_loop
from typing import Any

from django.db import connections


class _Known:
    """What was found in one thread.

    Args:
        edition: the one in which it was found.
    """

    __slots__ = ("edition", "wrappers")

    def __init__(self, edition: object) -> None:
        self.edition = edition
        self.wrappers: dict[str, Any] = {}


class _Here(threading.local):
    """What belongs to one thread alone."""

    known = _Known(None)  # nothing, and never filled


class _Watched:
    """Whether it is known when a connection takes the place of another one, as in a test."""

    __slots__ = ("edition",)

    def __init__(self) -> None:
        self.edition: object = None
        """Another object whenever one does; None before that is watched."""


_here = _Here()
_watched = _Watched()


def connection_of(alias: str) -> Any:
    """Return ``connections[alias]``: this thread's connection, made where there is none yet.

    Raises:
        ConnectionDoesNotExist: the alias is none of ``DATABASES``.
    """
    known = _here.known
    # In an event loop each task has its own.
    if known.edition is _watched.edition and _get_running_loop() is None:
        connection = known.wrappers.get(alias)
        if connection is not None:
            return connection
    return _find(alias)


def _find(alias: str) -> Any:
    edition = _watched.edition  # before the connection, which may be newer
    connection = connections[alias]
    if edition is not None and _get_running_loop() is None:
        if _here.known.edition is not edition:
            _here.known = _Known(edition)
        _here.known.wrappers[str(alias)] = connection
    return connection


class _WatchedHandler:
    """Stands in front of the class of Django's handler."""

    def __setitem__(self, alias: str, connection: Any) -> None:
        super().__setitem__(alias, connection)  # type: ignore[misc]
        _watched.edition = object()

    def __delitem__(self, alias: str) -> None:
        super().__delitem__(alias)  # type: ignore[misc]
        _watched.edition = object()


def watch_wrappers() -> None:
    """Have it known from now on when one of Django's connections takes the place of another one."""
    kind: Any = type(connections)
    if not issubclass(kind, _WatchedHandler):
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        connections.__class__ = type(kind.__name__, (_WatchedHandler, kind), names)
    _watched.edition = object()
