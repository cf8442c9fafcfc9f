"""``use_primary``, ``use_replica`` and ``ignore_writes``: each a block and a decorator; and ``scope``."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable
from copy import copy
from types import CodeType, TracebackType
from typing import Any, Literal, Self, TypeVar, get_args, overload

from django_replica_router.callers import find_frame
from django_replica_router.conf import get_config
from django_replica_router.decorating import decorate
from django_replica_router.errors import ConfigurationError
from django_replica_router.recording.carrying import token_of
from django_replica_router.recording.finishing import afinish_scope, finish_scope
from django_replica_router.routing.deciding import release_scope
from django_replica_router.scopes.identity import NamedIdentity
from django_replica_router.scopes.scope import Frame, Override, Scope, current_frame, get_frame
from django_replica_router.scopes.signing import Token
from django_replica_router.values.rules import is_seconds

OnStale = Literal["primary", "wait", "raise"]
_ON_STALE = get_args(OnStale)

F = TypeVar("F", bound=Callable[..., Any])


def _opener() -> CodeType | None:
    """Return the site's code that opens a block."""
    frame = find_frame()
    return None if frame is None else frame.f_code


class Routed:
    """A block, and a decorator, in which reads are routed, or writes ignored, as asked. Nests, and restores.

    The frame that was there before hangs on the frame of the block, and not on the block: one
    object may be entered by several threads and tasks at the same time.

    Args:
        override: what is asked for reads. None leaves them as they are, and has no write bind anybody.
    """

    _entries: tuple[str, ...] = ("dispatch",)
    """Of a class that is decorated, the methods of which the first that it has does its work."""

    def __init__(self, override: Override | None) -> None:
        self._override = override
        self._scope: Scope | None = None
        """To work in where there is none around the block: that of the steps of a generator."""
        self._source: CodeType | None = None
        """The code that the block decorates."""

    def __enter__(self) -> Self:
        outer = get_frame()
        scope = outer.scope or self._scope
        owns_scope = scope is None and self._needs_scope
        if owns_scope:
            scope = self._new_scope()
        current_frame.set(self._frame(scope, outer, owns_scope))
        return self

    def _frame(self, scope: Scope | None, outer: Frame, owns_scope: bool) -> Frame:
        """Return the frame of the code inside."""
        override = self._override or outer.override
        ignores = outer.ignores or self._override is None
        return Frame(scope, override, outer, owns_scope, ignores, outer.query)

    @property
    def _needs_scope(self) -> bool:
        return self._override is not None and not self._override.primary

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        frame = get_frame()
        if frame.outer is None:
            return  # left in another context than entered: there is nothing to restore here
        current_frame.set(frame.outer)
        if frame.owns_scope and frame.scope is not None:
            release_scope(frame.scope)

    def _new_scope(self) -> Scope:
        source = self._source or _opener()
        return Scope(NamedIdentity(), debug=get_config().DEBUG, source=source)

    def for_steps(self) -> Self:
        """Return a block for the steps of a generator, which share one scope.

        Whoever runs the steps ends it with ``end``.
        """
        if not self._needs_scope or get_frame().scope is not None:
            return self
        block = copy(self)
        block._scope = self._new_scope()
        return block

    def end(self) -> None:
        """Give back what the scope of the steps holds."""
        if self._scope is not None:
            release_scope(self._scope)

    def __call__(self, target: F) -> F:
        """Decorate a function, coroutine function, generator, async generator, or view class."""
        # Known by what it decorates: one object may decorate several functions.
        routed = copy(self)
        routed._source = getattr(target, "__code__", None)
        return decorate(routed, target, self._entries)


@overload
def use_primary(target: F, /) -> F: ...
@overload
def use_primary() -> Routed: ...
def use_primary(target: Any = None, /) -> Any:
    """Read from the primary: ``@use_primary``, ``@use_primary()`` or ``with use_primary():``.

    For functions, ``async def``, generators, function views and class-based views. A template
    response or a stream that such a view returns is routed, too, although it is evaluated later.
    A lazy queryset that leaves the function is not: evaluate it inside.

    Raises:
        ConfigurationError: a class without ``dispatch`` is decorated.
    """
    routed = Routed(Override(primary=True))
    return routed if target is None else routed(target)


@overload
def use_replica(target: F, /) -> F: ...
@overload
def use_replica(
    *, max_lag: float | None = None, on_stale: OnStale = "primary", timeout: float = 10.0
) -> Routed: ...
def use_replica(
    target: Any = None,
    /,
    *,
    max_lag: float | None = None,
    on_stale: OnStale = "primary",
    timeout: float = 10.0,
) -> Any:
    """Let reads go to a replica although the request may write, or outside a request.

    What a *reader* is promised holds: the replica must have replayed what the user has written (and
    what this very request has), and inside ``atomic()`` on the primary reads stay there. Where no
    replica may serve, the primary does. But an object that was read from a replica and is saved may
    overwrite what others have written meanwhile: see the setting ``STALE_SAVES``.

    Args:
        target: what to decorate, when used without parentheses.
        max_lag: seconds that the replica's data may be old; the setting ``MAX_LAG`` when None. A
            larger value admits replicas that lag more, as for a report.
        on_stale: what to do where no replica may serve: read from the ``"primary"``; ``"wait"`` for a
            replica; or ``"raise"`` ``TooStale`` at once.
        timeout: seconds that ``"wait"`` waits before it raises ``TooStale``.

    Raises:
        ConfigurationError: ``max_lag`` or ``timeout`` is no number of seconds, ``on_stale`` none of these
            words, or a class without ``dispatch`` is decorated.
    """
    routed = Routed(replica_override(max_lag, on_stale, timeout))
    return routed if target is None else routed(target)


def replica_override(max_lag: float | None, on_stale: str, timeout: float) -> Override:
    """Return what ``use_replica`` asks for with these arguments.

    Raises:
        ConfigurationError: one of them is not what it should be.
    """
    if max_lag is not None and not is_seconds(max_lag):
        message = f"max_lag should be a number of seconds, 0 or more, or None, not {max_lag!r}."
        raise ConfigurationError(message)
    if on_stale not in _ON_STALE:
        message = f"on_stale should be one of {', '.join(map(repr, _ON_STALE))}, not {on_stale!r}."
        raise ConfigurationError(message)
    if not is_seconds(timeout):
        message = f"timeout should be a number of seconds, 0 or more, not {timeout!r}."
        raise ConfigurationError(message)
    patience = timeout if on_stale == "wait" else 0.0
    return Override(False, max_lag, on_stale, patience)


@overload
def ignore_writes(target: F, /) -> F: ...
@overload
def ignore_writes() -> Routed: ...
def ignore_writes(target: Any = None, /) -> Any:
    """Let no write bind anybody: ``@ignore_writes``, ``@ignore_writes()`` or ``with ignore_writes():``.

    For what nobody must see at once, such as a page counter or an audit row. Every statement inside
    counts as none that has written, raw SQL as well: the rest of the request goes on reading from a
    replica, and no token is made. A replica may show its user for a while what was before. Where a
    transaction writes inside and outside of the block, it counts as one that has written.

    Everything that ``use_primary`` decorates may be decorated, and the blocks nest.

    Raises:
        ConfigurationError: a class without ``dispatch`` is decorated.
    """
    routed = Routed(None)
    return routed if target is None else routed(target)


class ScopeBlock:
    """A routing scope outside a request: ``with`` or ``async with``."""

    def __init__(self, scope: OpenedScope) -> None:
        self.scope = scope
        self._token: contextvars.Token[Frame] | None = None
        self._outer: Scope | None = None

    def _open(self) -> OpenedScope:
        outer = get_frame()
        self._outer = outer.scope
        self.scope.has_ended = False
        if self.scope.source is None:
            self.scope.source = _opener()
        if self._outer is not None:
            self.scope.follow(self._outer)
        self._token = current_frame.set(
            Frame(self.scope, outer.override, ignores=outer.ignores, query=outer.query)
        )
        return self.scope

    def _close(self) -> None:
        if self._token is not None:
            # Left in another context than entered, as by a generator that somebody else closes:
            # there is nothing to restore here.
            with contextlib.suppress(ValueError):
                current_frame.reset(self._token)
        release_scope(self.scope)

    def _hand_over(self) -> None:
        # What was written inside must be seen by the rest of the scope outside, and by its user; and what was
        # seen inside by its user the next time.
        if self._outer is not None:
            self._outer.inherit_writes(self.scope)
            if get_config().MONOTONIC_READS:
                self._outer.inherit_seen(self.scope)

    def __enter__(self) -> OpenedScope:
        return self._open()

    def __exit__(self, *error: object) -> None:
        self._hand_over()
        try:
            finish_scope(self.scope)
        finally:
            self._close()

    async def __aenter__(self) -> OpenedScope:
        return self._open()

    async def __aexit__(self, *error: object) -> None:
        self._hand_over()
        try:
            await afinish_scope(self.scope)
        finally:
            self._close()


class OpenedScope(Scope):
    """A scope that the code has opened, and whose token it may pass on."""

    __slots__ = ()

    gives_token = True

    @property
    def token(self) -> Token:
        """What whoever goes on from here must see: ``str()`` gives its text. Rises while the scope works.

        Raises:
            SynchronousOnlyOperation: in an event loop, where ``await acurrent_token()`` does the same.
        """
        return token_of(self)


def scope(
    *, user: Any = None, users: Iterable[Any] = (), token: str | Token | None = None
) -> ScopeBlock:
    """Open a routing scope, as the middleware does for a request.

    For a task, a consumer or a command that works for a user: inside it reads go to replicas that
    have what the user has written, and what is written inside is remembered for the user.

    Args:
        user: a user object or primary key; None for nobody.
        users: further users to whom it applies.
        token: what else must be seen, as ``current_token()`` gave it where the work comes from. One that
            is broken or forged is ignored, and counted.
    """
    named = (*(() if user is None else (user,)), *users)
    opened = OpenedScope(NamedIdentity(named), debug=get_config().DEBUG)
    opened.see(Token.read(token))
    return ScopeBlock(opened)
