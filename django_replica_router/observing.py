"""Observing a block: which server answers each of its statements, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from django.db.models import QuerySet
from django.db.models.sql import Query as QueryOfModel

from django_replica_router.conf import reread
from django_replica_router.forking import make_lock
from django_replica_router.observations import (
    QUERYSET_LEFT_BLOCK,
    Event,
    Observation,
    Query,
    find_observation,
    observed,
    observers,
    warn,
)
from django_replica_router.scopes.scope import get_frame

__all__ = ["Event", "Observation", "Query", "commenting", "observe", "tell_reasons", "telling"]

O = TypeVar("O", bound=Observation)  # noqa: E741 - the kind of observation

_lock = make_lock()
_observers = 0
_tells_reasons = False


@contextmanager
def observe() -> Iterator[Observation]:
    """Keep each statement of the block with the server that has answered it, and why.

    Also those that run in other threads of the same context, as by ``sync_to_async``. Blocks may be nested:
    the outer one sees what the inner one does. While anybody observes, each read of this process is
    decided on in full, which takes some 70 microseconds longer, and 130 in the block; otherwise it costs nothing.

    Yields:
        Observation: its ``queries`` and ``events`` grow while the block runs.
    """
    with observe_by(Observation) as observation:
        yield observation


@contextmanager
def observe_by(make: Callable[[Observation | None], O]) -> Iterator[O]:
    """Do so by an observation of another kind.

    Args:
        make: makes it, of the one around it.

    Yields:
        Observation: what was made.
    """
    observation = make(find_observation())
    _begin()
    try:
        with _observed_by(observation):
            yield observation
    finally:
        _end()


def tell_reasons(*, is_on: bool = True) -> None:
    """Have this process be ready for ``commenting`` and ``telling``, from now on, or no more."""
    global _tells_reasons
    with _lock:
        _tells_reasons = is_on
        _switch()


@contextmanager
def commenting() -> Iterator[None]:
    """Send each statement of the block with a comment that tells its server, and why that one was chosen.

    Nothing is kept of them. Only where ``tell_reasons`` was called before.
    """
    with _known(comments=True):
        yield


@contextmanager
def telling() -> Iterator[None]:
    """Have the server of each statement of the block, and why that was chosen, known while the statement runs.

    Nothing is kept of them. It is for ``contrib.opentelemetry.spans``, and only where ``tell_reasons`` was called
    before.
    """
    with _known(comments=False):
        yield


@contextmanager
def _known(*, comments: bool) -> Iterator[None]:
    with _observed_by(Observation(find_observation(), keeps=False, comments=comments)):
        yield


@contextmanager
def _observed_by(observation: Observation) -> Iterator[None]:
    token = observed.set(observation)
    try:
        yield
    finally:
        observation.has_ended = True
        # A generator's block may be left in another context than entered, as where a stream is read in
        # several threads, or is given up: there is nothing to put back there.
        with suppress(ValueError):
            observed.reset(token)


def _begin() -> None:
    global _observers
    with _lock:
        _observers += 1
        if _observers == 1:
            _QuerySets.watch()
            _switch()


def _end() -> None:
    global _observers
    with _lock:
        _observers -= 1
        if not _observers:
            _QuerySets.leave()
            _switch()


def _switch() -> None:
    is_on = _observers > 0 or _tells_reasons
    if is_on != observers.present:
        observers.present = is_on
        reread()  # no shortcut is followed any more, or again, and each connection looks around


_MADE_IN_BLOCK = "_replica_router_made_in_block"


class _QuerySets:
    """Notices querysets that are made in a ``use_primary`` block and run outside.

    Nothing of Django's tells when a queryset is made: so, while somebody observes, it is told here.
    """

    _init: Any = None
    _get_compiler: Any = None

    @classmethod
    def watch(cls) -> None:
        """Begin to notice them."""
        cls._init, cls._get_compiler = QuerySet.__init__, QueryOfModel.get_compiler
        init, get_compiler = cls._init, cls._get_compiler

        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            override = get_frame().override
            is_forced = override is not None and override.primary
            setattr(self._query, _MADE_IN_BLOCK, is_forced and self._db is None)

        def compiled(self: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self, _MADE_IN_BLOCK, False):
                override = get_frame().override
                if override is None or not override.primary:
                    warn(QUERYSET_LEFT_BLOCK, self.model._meta.label)
            return get_compiler(self, *args, **kwargs)

        QuerySet.__init__ = made  # type: ignore[method-assign]
        QueryOfModel.get_compiler = compiled  # type: ignore[method-assign]

    @classmethod
    def leave(cls) -> None:
        """End that."""
        QuerySet.__init__ = cls._init  # type: ignore[method-assign]
        QueryOfModel.get_compiler = cls._get_compiler  # type: ignore[method-assign]
