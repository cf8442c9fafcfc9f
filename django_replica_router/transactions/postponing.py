"""What a block needs of its server, put off until a statement needs it.

Django opens a connection for every atomic block, and has its server answer where
``CONN_HEALTH_CHECKS`` is set. It has no hook for this: a connection is of another class while its block
needs nothing, and of its own again when it does, or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

# What Django takes back where it opens a connection: it does not expect that a block is open.
_BLOCK = ("in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback", "run_on_commit")


def can_be_postponed(connection: Any) -> bool:
    """Tell whether an atomic block that begins now would ask something of the server that can wait."""
    if connection.in_atomic_block or not connection.settings_dict["AUTOCOMMIT"]:
        return False
    if connection.connection is None:
        return True
    is_due = connection.health_check_enabled and not connection.health_check_done
    return is_due and not connection.connection.closed


class Postponed:
    """The outermost atomic block of a connection, which needs nothing yet.

    Call ``begin`` before Django opens the block, ``end`` before it ends it, and ``over`` afterwards.
    """

    def __init__(self, connection: Any, on_ready: Callable[[Any], None]) -> None:
        self._connection = connection
        self._on_ready = on_ready
        self._kind: Any = type(connection)
        self._is_waiting = False
        self._then: Callable[[], None] | None = None

    def begin(self) -> None:
        """Have Django open the block without the server."""
        if self._connection.connection is None:
            self._connection.autocommit = True  # as it is after it was opened
        self._pass(self._wait)

    def end(self) -> None:
        """Have Django end the block without the server, if it has needed nothing."""
        if self._is_waiting:
            self._pass(self.over)

    def over(self) -> None:
        """Put everything back."""
        self._is_waiting, self._then = False, None
        self._connection.__class__ = self._kind

    def confirm(self) -> None:
        """Put everything back where no block was opened."""
        if not self._is_waiting:
            self.over()

    def _pass(self, then: Callable[[], None]) -> None:
        """Have Django do what it does up to where it switches autocommit, which is the last of it."""
        self._is_waiting, self._then = False, then
        self._connection.postponed = self
        self._connection.__class__ = _postponing(self._kind)

    def switch(self) -> bool:
        """Tell whether the server is to be told that autocommit is switched."""
        then, self._then = self._then, None
        if then is not None:
            then()
        return then is None or self._connection.connection is not None

    def _wait(self) -> None:
        self._is_waiting = True

    def make_ready(self) -> None:
        """Do what was put off, if the block needs it now, and leave the block as it is."""
        if not self._is_waiting:
            return
        connection = self._connection
        block = {name: getattr(connection, name) for name in _BLOCK}
        self.over()
        connection.in_atomic_block = False  # in which a broken connection could not be replaced
        try:
            connection.close_if_health_check_failed()
            if connection.connection is None:
                connection.ensure_connection()
                connection._set_autocommit(False)
        except BaseException:
            if connection.connection is None:
                self._pass(self._wait)  # for the next statement
                self.switch()
            raise
        finally:
            connection.__dict__.update(block, autocommit=False)
        self._on_ready(connection)


class _Postponing:
    """Stands in front of the class of a connection whose block needs nothing yet."""

    postponed: Postponed

    def ensure_connection(self) -> None:
        self.postponed.make_ready()

    def close_if_health_check_failed(self) -> None:
        self.postponed.make_ready()

    def temporary_connection(self) -> Any:
        # Before Django looks, as the block is entered: else it would be closed, and its transaction lost.
        opened = super().temporary_connection()  # type: ignore[misc]
        self.postponed.make_ready()
        return opened

    def _set_autocommit(self, autocommit: bool) -> None:
        switch = super()._set_autocommit  # type: ignore[misc]
        if self.postponed.switch():  # after which the connection is of another class, perhaps
            switch(autocommit)


@cache
def _postponing(kind: Any) -> Any:
    return type(kind.__name__, (_Postponing, kind), {"__module__": kind.__module__})
