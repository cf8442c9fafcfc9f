"""The one transaction of a ``TestCase``, in which the aliases of replicas read as well.

A ``TestCase`` commits nothing: what it writes no other connection sees. So an alias that is the same
database reads over the primary's own connection there, for as long as a block lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from django.db import connections

from django_replica_router.errors import ConfigurationError
from django_replica_router.transactions.blocks import replicas_in_transaction


class _BlocksOfTest(list[Any]):
    """The blocks of a test case: reads need not stay in them, whatever is written there.

    Compared with what is open on the connection at a moment: see ``idle_blocks``. Equal to the test case's own
    blocks for as long as the test lasts, and to these with the handler's (``ATOMIC_REQUESTS``) while that idles.
    """

    def __init__(self, blocks: list[Any]) -> None:
        super().__init__(blocks)
        self.around = list(blocks)
        self._with_handlers: list[Any] | None = None

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take in, or give up, the handler's block. The test case's own remain."""
        self._with_handlers = list(value) if list(value)[:-1] == self.around else None

    def __eq__(self, blocks: object) -> bool:
        return blocks in (self.around, self._with_handlers)

    def __ne__(self, blocks: object) -> bool:
        return not self == blocks

    __hash__ = None


def blocks_of_test(primary: str) -> list[Any]:
    """Return the atomic blocks that a ``TestCase`` has open on a primary: none in tests of another kind."""
    blocks = connections[primary].atomic_blocks
    return [block for block in blocks if getattr(block, "_from_testcase", False)]


def is_forbidden(alias: str) -> bool:
    """Tell whether the present test's class does not list an alias in its ``databases``."""
    # Django puts an object of this class in the place of the method.
    return type(connections[alias].__dict__.get("cursor")).__name__ == "_DatabaseFailure"


def demand_allowed(primary: str, replicas: Sequence[str]) -> None:
    """Refuse a test that may use a primary, and not its replicas.

    Raises:
        ConfigurationError: it may not.
    """
    forbidden = [alias for alias in replicas if is_forbidden(alias)]
    if forbidden and not is_forbidden(primary):
        message = (
            f"This test may not use {', '.join(map(repr, forbidden))}: name the replicas, too, as in "
            f"databases = {{{', '.join(map(repr, [primary, *replicas]))}}} of the test's class, or "
            f"@pytest.mark.django_db(transaction=True, databases=[...])."
        )
        raise ConfigurationError(message)


@contextmanager
def sharing_transaction(primary: str, replicas: Sequence[str]) -> Iterator[None]:
    """Have the aliases of replicas read in the transaction of a ``TestCase``, inside the block.

    In a test of any kind their queries are logged with the primary's: how many there are does not depend on who
    answers them, and ``assertNumQueries`` says the same as without the block.
    """
    blocks = blocks_of_test(primary)
    if not blocks:
        demand_allowed(primary, replicas)
        with ExitStack() as stack:
            for alias in replicas:
                stack.enter_context(_logging_with(connections[primary], connections[alias]))
            yield
        return
    connection: Any = connections[primary]
    idle, connection.idle_blocks = connection.idle_blocks, _BlocksOfTest(blocks)
    own: dict[str, Any] = {alias: connections[alias] for alias in replicas}
    in_transaction = [one for one in own.values() if one in replicas_in_transaction]
    replicas_in_transaction.difference_update(in_transaction)
    for alias in replicas:
        connections[alias] = _make_sharing(alias, connection, blocks)
    try:
        yield
    finally:
        for alias, one in own.items():
            connections[alias].connection = None
            connections[alias] = one
        replicas_in_transaction.update(in_transaction)
        connection.idle_blocks = idle


def _make_sharing(alias: str, primary: Any, blocks: list[Any]) -> Any:
    """Return a connection of an alias that is the primary's: its blocks are savepoints there."""
    one: Any = connections.create_connection(alias)
    one.connection = primary.connection
    one.autocommit, one.in_atomic_block, one.atomic_blocks = False, True, list(blocks)
    one.close = lambda: None  # the driver's connection is not its own
    one._named_cursor_idx = 1_000_000  # else both would name a server-side cursor alike
    _log_with(primary, one)
    return one


class _Logging:
    """Stands in front of the class of a connection whose queries are logged with another's."""

    logs_with: Any
    force_debug_cursor = False

    @property
    def queries_logged(self) -> bool:
        """Whether there is a log: where the other has one."""
        return self.force_debug_cursor or bool(self.logs_with.queries_logged)


@cache
def _logging(kind: Any) -> Any:
    return type(kind.__name__, (_Logging, kind), {"__module__": kind.__module__})


def _log_with(primary: Any, one: Any) -> None:
    kind: Any = type(one)
    one.logs_with, one.queries_log = primary, primary.queries_log
    one.__class__ = kind if issubclass(kind, _Logging) else _logging(kind)


@contextmanager
def _logging_with(primary: Any, one: Any) -> Iterator[None]:
    kind, log = type(one), one.queries_log
    _log_with(primary, one)
    try:
        yield
    finally:
        one.__class__, one.queries_log = kind, log
