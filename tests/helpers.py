"""What makes the tests read like the README."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from django.db import connections

from testproject.cluster.managed import Managed


class Served(Managed):
    """Records, for this thread, which alias was asked to run which statement."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, str]] = []

    def _open(self, stack: ExitStack) -> None:
        for alias in connections:
            stack.enter_context(connections[alias].execute_wrapper(self._record))

    def _record(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        self.statements.append((context["connection"].alias, str(sql)))
        return execute(sql, params, many, context)

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.statements.clear()

    def aliases(self, table: str = "") -> set[str]:
        """Return the aliases that ran a statement in which the table's name occurs."""
        return {alias for alias, sql in self.statements if table in sql}

    def only_replicas(self, table: str = "") -> bool:
        """Tell whether there was a statement, and none on the primary."""
        aliases = self.aliases(table)
        return bool(aliases) and "default" not in aliases

    def only_primary(self, table: str = "") -> bool:
        """Tell whether there was a statement, and none on a replica."""
        return self.aliases(table) == {"default"}
