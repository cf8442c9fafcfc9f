"""What a block of a test does, also in the threads of a live server, and how that is told."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.core.signals import request_started

from django_replica_router.conf import get_config
from django_replica_router.observations import SESSION, Observation, Query, observed
from django_replica_router.observing import observe_by

O = TypeVar("O", bound=Observation)  # noqa: E741 - the kind of observation

_WIDTH = 110
"""Characters of a statement that are shown."""

_COLUMNS = re.compile(r"^(SELECT(?: DISTINCT)?) .*? (FROM )", re.DOTALL)


class Whole(Observation):
    """Keeps all that is seen: what is asserted of a block is asserted of each of its statements."""

    most = sys.maxsize


_active: list[Observation] = []
"""Those of the blocks that are open, the innermost last. A test runs in one thread."""


@contextmanager
def watching(make: Callable[[Observation | None], O]) -> Iterator[O]:
    """Observe a block, and the requests that a live server answers meanwhile, in threads of its own.

    Args:
        make: makes the observation, of the one around it.
    """
    with observe_by(make) as seen:
        _active.append(seen)
        request_started.connect(_observe_request, weak=False, dispatch_uid=id(seen))
        try:
            yield seen
        finally:
            request_started.disconnect(dispatch_uid=id(seen))
            _active.remove(seen)


def _observe_request(**kwargs: Any) -> None:
    """Observe a request in whose thread nobody does: it is a live server's, perhaps of an earlier block."""
    if _active and observed.get() not in _active:
        observed.set(_active[-1])


def is_of_cluster(query: Query) -> bool:
    """Tell whether a statement is one that counts: of a cluster, and not of its session only."""
    return query.reason != SESSION and query.alias in get_config().topology.primary_of


def tell_queries(queries: Iterable[Query]) -> str:
    """Return a text that lists statements, each with its server, reason and line."""
    lines = []
    for number, query in enumerate(queries, 1):
        happened = f" ({', '.join(query.events)})" if query.events else ""
        lines += [
            f"{number:3}. {query.alias}: {shorten(query.sql)}",
            f"     {query.reason}: {query.sentence}{happened}",
            f"     {tell_line(query.line)}",
        ]
    return "\n".join(lines) or "  Nothing."


def shorten(sql: str) -> str:
    """Return a statement in one line, without its columns where it is long."""
    text = " ".join(sql.split())
    if len(text) > _WIDTH:
        text = _COLUMNS.sub(r"\1 ... \2", text, count=1)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def tell_line(line: str) -> str:
    """Return a file and line, as seen from the present folder where it lies in there."""
    return line.removeprefix(os.getcwd() + os.sep)
