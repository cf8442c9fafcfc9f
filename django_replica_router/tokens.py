"""What the code itself may do with tokens: give one out, take one in, and wait until replicas are there."""

from __future__ import annotations

from collections.abc import Mapping

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS
from django.utils.asyncio import async_unsafe

from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError, PositionError, TooStale, tell_ages
from django_replica_router.policy import IN_SERVICE
from django_replica_router.recording.carrying import position_in, token_of
from django_replica_router.recording.tracking import track, tracked_key
from django_replica_router.recording.writes import locate
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.scopes.scope import current_scope
from django_replica_router.scopes.signing import Token
from django_replica_router.scopes.written import WriteMark
from django_replica_router.values.rules import is_seconds

__all__ = [
    "Token",
    "acurrent_token",
    "await_for_replicas",
    "current_token",
    "see",
    "track",
    "wait_for_replicas",
]


@async_unsafe("Use `await acurrent_token()` in async code: a token may have to be asked for.")
def current_token() -> Token:
    """Return what whoever goes on from here must see: a worker, another service, a client.

    ``str()`` of it is a text of some 80 characters, signed, that may be put in a header or a message; give
    it to ``scope(token=...)`` or ``see()`` there. It covers what the present scope has written, what its
    user had written before, and what came with a token. In a transaction that is open it names the
    transaction: who reads by it waits for its end. Outside of a scope it is empty.

    Asks the token store, and the primary where the scope has written.

    Raises:
        SynchronousOnlyOperation: in an event loop.
    """
    scope = current_scope()
    return Token() if scope is None else token_of(scope)


async def acurrent_token() -> Token:
    """Do the same as ``current_token`` in async code."""
    return await sync_to_async(current_token)()


def see(token: str | Token | None = None, *, key: object = None) -> None:
    """Have the present scope read from now on what a token, or a key, binds to. Outside of one it does nothing.

    Args:
        token: what somebody else has written, as ``current_token()`` gave it there. One that is broken or
            forged is ignored, and counted.
        key: what was written under it by ``track(key)`` must be seen.

    Raises:
        ConfigurationError: neither is given.
    """
    if token is None and key is None:
        message = "see() needs a token, as current_token() gives it, or a key, as track() takes it."
        raise ConfigurationError(message)
    scope = current_scope()
    if scope is None:
        return
    if token is not None:
        scope.see(Token.read(token))
    if key is not None:
        scope.see_key(tracked_key(key))


def wait_for_replicas(
    *,
    token: str | Token | None = None,
    max_lag: float | None = None,
    timeout: float = 60.0,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Wait until all replicas in service have what a token binds to, and lag no more than allowed.

    For back-fills and migrations that write no faster than replicas replay: call it after each batch,
    outside of transactions. Without an argument it waits for all that was written by now.

    Args:
        token: what they must have; with neither a token nor a lag, all that the primary has by now.
        max_lag: seconds that their data may be old.
        timeout: seconds that may be waited.
        using: alias of the primary.

    Raises:
        TooStale: a replica in service is late; ``replicas`` tells which, and how old its data may be.
        ConfigurationError: an argument is not what it should be.
        PositionError: the primary does not tell where it is, as inside a transaction.
    """
    _check_arguments(using, max_lag=max_lag, timeout=timeout)
    lsn = _wanted_lsn(using, token, max_lag)
    monitor = get_monitor(using)
    bound = float("inf") if max_lag is None else max_lag
    deadline = monitor.clock() + timeout
    while late := _late(monitor, lsn, bound):
        left = deadline - monitor.clock()
        if left <= 0:
            message = (
                f"After {timeout:g} s these replicas of {using!r} are late: {tell_ages(late)}."
            )
            raise TooStale(message, late)
        monitor.waiting.wait_closely(
            lsn, bound, lambda: not _late(monitor, lsn, bound) or None, left
        )


def _check_arguments(using: str, **seconds: float | None) -> None:
    clusters = get_config().topology.clusters
    if using not in clusters:
        known = ", ".join(map(repr, clusters)) or "none"
        message = f"using should be the alias of a primary with replicas ({known}), not {using!r}."
        raise ConfigurationError(message)
    for name, value in seconds.items():
        if value is not None and not is_seconds(value):
            message = f"{name} should be a number of seconds, 0 or more, not {value!r}."
            raise ConfigurationError(message)


async def await_for_replicas(
    *,
    token: str | Token | None = None,
    max_lag: float | None = None,
    timeout: float = 60.0,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Do the same as ``wait_for_replicas`` in async code."""
    await sync_to_async(wait_for_replicas)(
        token=token, max_lag=max_lag, timeout=timeout, using=using
    )


def _wanted_lsn(primary: str, token: str | Token | None, max_lag: float | None) -> int:
    if token is not None:
        return position_in(Token.read(token), primary).lsn
    if max_lag is not None:
        return 0
    position = locate(primary, WriteMark())
    if position is None:
        message = f"{primary!r} does not tell where it is. Call wait_for_replicas() outside of transactions."
        raise PositionError(message)
    return position.lsn


def _late(monitor: Monitor, lsn: int, max_lag: float) -> Mapping[str, float]:
    """Return the replicas in service that lack a position or lag too far, with their age in seconds.

    One of which nothing is known here yet may be in service.
    """
    return {
        replica.alias: replica.age
        for replica in monitor.health.replicas()
        if replica.state in IN_SERVICE and not (replica.watermark >= lsn and replica.age <= max_lag)
    }
