"""CQRS: a ``command`` writes, and reads, on the primary; a ``query`` reads from replicas, and may not write."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from typing import Any, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, transaction

from django_replica_router.conf import get_config
from django_replica_router.decorating import decorate
from django_replica_router.decorators import (
    OnStale,
    OpenedScope,
    Routed,
    ScopeBlock,
    replica_override,
)
from django_replica_router.errors import ConfigurationError
from django_replica_router.scopes.identity import NamedIdentity
from django_replica_router.scopes.scope import Frame, Override, Scope, current_scope

F = TypeVar("F", bound=Callable[..., Any])

_ENTRIES = ("dispatch", "handle", "__call__")
_BLOCK = "of a block"


class Query(Routed):
    """A block, and a decorator, in which reads go to replicas, and nothing may be written."""

    _entries = _ENTRIES
    _name = ""

    def _frame(self, scope: Scope | None, outer: Frame, owns_scope: bool) -> Frame:
        override = self._override
        if outer.override is not None and outer.override.primary:
            override = outer.override  # a command decides by what there is now
        return Frame(
            scope, override, outer, owns_scope, outer.ignores, self._name or outer.query or _BLOCK
        )

    def __call__(self, target: F) -> F:
        """Decorate a function, a method, a generator, or a class of handlers or views."""
        named = copy(self)
        named._name = self._name or repr(_name_of(target))
        return Routed.__call__(named, target)


class Command(Routed):
    """A decorator of what writes.

    Args:
        atomic: run it in one transaction.
        using: alias of the primary that the transaction is on.
    """

    _entries = _ENTRIES

    def __init__(self, *, atomic: bool, using: str | None) -> None:
        super().__init__(Override(primary=True))
        self._atomic = atomic
        self._using = using

    def __call__(self, target: F) -> F:
        """Decorate a function, a method, a generator, or a class of handlers or views."""
        given: Any = target
        if isinstance(given, type | staticmethod | classmethod) or not callable(given):
            return decorate(self, target, self._entries)  # which decorates the function in it
        prepared: F = super().__call__(self._prepare(given))
        return prepared

    def _prepare(self, function: Any) -> Any:
        """Return the function in a scope, where it is called in none, and in its transaction."""
        steps = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if self._atomic and (steps or inspect.iscoroutinefunction(function)):
            message = (
                f"{_name_of(function)!r} cannot be atomic: Django's transactions hold for plain "
                f"functions only. Put what belongs together into one, and await "
                f"sync_to_async() of it."
            )
            raise ConfigurationError(message)
        if steps:
            return function
        if inspect.iscoroutinefunction(function):
            return _in_scope_async(function)
        return _in_scope(_in_transaction(function, self._using) if self._atomic else function)


def _own_scope(function: Any) -> Any:
    """Return a scope for one call, or nothing where there is one around it."""
    if current_scope() is not None:
        return nullcontext()
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ScopeBlock(OpenedScope(NamedIdentity(), debug=get_config().DEBUG, source=code))


def _in_scope(function: Any) -> Any:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with _own_scope(function):
            return function(*args, **kwargs)

    return inside


def _in_scope_async(function: Any) -> Any:
    @functools.wraps(function)
    async def inside(*args: Any, **kwargs: Any) -> Any:
        async with _own_scope(function):
            return await function(*args, **kwargs)

    return inside


def _in_transaction(function: Any, using: str | None) -> Any:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        alias = DEFAULT_DB_ALIAS if using is None else using
        if get_config().topology.is_replica(alias):
            message = f"{alias!r} is a replica: pass the alias of a primary to @command."
            raise ConfigurationError(message)
        with transaction.atomic(using=alias):
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                getattr(result, "close", lambda: None)()
                message = (
                    f"{_name_of(function)!r} cannot be atomic: it returns what is awaited later, "
                    f"when its transaction is over."
                )
                raise ConfigurationError(message)
            return result

    return inside


def _name_of(target: Any) -> str:
    module = getattr(target, "__module__", None)
    name = getattr(target, "__qualname__", None) or repr(target)
    return f"{module}.{name}" if module else name


@overload
def command(target: F, /) -> F: ...
@overload
def command(*, atomic: bool = False, using: str | None = None) -> Callable[[F], F]: ...
def command(target: Any = None, /, *, atomic: bool = False, using: str | None = None) -> Any:
    """Write: read and write on the primary. ``@command`` or ``@command(atomic=True)``.

    For functions, methods, ``async def``, generators, and for classes: views, and whatever has a method
    ``handle()`` or ``__call__()``. Where no scope is around the call it runs in one of its own; in a scope,
    ``current_token()``, or the scope's own ``token``, tells afterwards what whoever goes on must see.

    Args:
        target: what to decorate, when used without parentheses.
        atomic: run it in one transaction, which is rolled back where it raises.
        using: alias of the primary of that transaction; the default database when None.

    Raises:
        ConfigurationError: a class without such a method is decorated, or with ``atomic`` what is awaited or
            iterated over; or, when it is called, ``using`` is a replica.
        WriteInQuery: it is called in a ``query``, and writes.
    """
    block = Command(atomic=atomic, using=using)
    return block if target is None else block(target)


@overload
def query(target: F, /) -> F: ...
@overload
def query(
    *, max_lag: float | None = None, on_stale: OnStale = "primary", timeout: float = 10.0
) -> Query: ...
def query(
    target: Any = None,
    /,
    *,
    max_lag: float | None = None,
    on_stale: OnStale = "primary",
    timeout: float = 10.0,
) -> Any:
    """Read: from replicas, as ``use_replica`` does, and write nothing. ``@query``, or ``with query():``.

    It sees what its user, and this very request, has written. In a ``command``, in ``use_primary`` and in a
    transaction it reads where that does. What it calls may not write either: a statement that does is
    refused before it is sent; where its text does not tell, as of a function, its server refuses it.

    Evaluate inside what is to be read: a lazy queryset that leaves the function is no part of the query.

    Args:
        target: what to decorate, when used without parentheses: whatever ``command`` does.
        max_lag: seconds that a replica's data may be old; the setting ``MAX_LAG`` when None.
        on_stale: what to do where no replica may serve: read from the ``"primary"``; ``"wait"`` for a
            replica; or ``"raise"`` ``TooStale`` at once.
        timeout: seconds that ``"wait"`` waits before it raises ``TooStale``.

    Raises:
        ConfigurationError: an argument is not what it should be, or a class without such a method is decorated.
        WriteInQuery: when it is called, and writes or locks.
    """
    block = Query(replica_override(max_lag, on_stale, timeout))
    return block if target is None else block(target)
