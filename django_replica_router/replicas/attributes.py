"""What the package keeps on each of Django's connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from django_replica_router.replicas.inflight import Waiter
from django_replica_router.values.servers import Life

Execute = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Sight:
    """Which standby a connection was seen to lead to.

    Args:
        raw: the driver's connection. Django may have opened another one since.
        life: which server, and which life of it.
        is_pooled: a pooler may lead it elsewhere without its breaking.
        is_expected: nobody has looked yet. Its first statement asks along who answers, as each does
            behind a pooler.
    """

    raw: Any
    life: Life
    is_pooled: bool
    is_expected: bool = False


class SessionSettings(NamedTuple):
    """What the code has set for the session of a connection.

    Args:
        raw: the driver's connection. Django may have opened another one since, which has none of them.
        values: the statement that has made each, and its parameters.
    """

    raw: Any
    values: dict[str, str]


class Around:
    """What runs around the statements of a connection. Of one of no cluster: nothing.

    Args:
        alias: of the connection.
        primary: alias of the primary of its cluster.
        config: the settings for which this is what runs there.
        edition: stands for these: see ``parsed``.
    """

    is_of_replica: bool = False

    def __init__(self, alias: str, primary: str, config: Any, edition: object) -> None:
        self.alias = alias
        self.primary = primary
        self.config = config
        self.edition = edition

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement, and return what Django's cursor returns for it.

        Args:
            cursor: Django's cursor.
            execute: runs a statement there, inside what is around it here. Takes the four that follow.
            sql: the statement.
            params: its parameters, or a list of them.
            many: the parameters are a list.
            executor: what Django itself runs innermost.
        """
        return execute(sql, params, many, executor)


UNKNOWN = Around("", "", None, object())
"""Of a connection of which that has to be found out: its settings are no present ones."""


class Attributes:
    """What is known of one of Django's connections: a base of the class that it is given."""

    around: Around = UNKNOWN
    """What runs around its statements. Chosen anew where the settings, or where it leads to, change."""

    waiter: Waiter
    """Tells whether it waits for a server's answer."""

    sight: Sight | None = None
    """Which standby it was last seen to lead to."""

    connect_timeout: float | None = None
    """Seconds within which it has to be opened; None where the driver's own bound is the only one."""

    expected_life: Life | None = None
    """The server that the next opening is expected to lead to, and that its first statement looks for."""

    on_opened: Callable[[Any], None] | None = None
    """Called with the driver's connection as soon as that is open."""

    idle_blocks: list[Any]
    """Equal to ``atomic_blocks`` while the open block keeps no reads: see ``idle_blocks``."""

    session_settings: SessionSettings | None = None
    """What the code has set for its session."""

    unseen_table: str | None = None
    """Of a primary: the table that the router was just asked for."""

    brings_positions: bool = False
    """Of a primary: a change outside a transaction brings its position in the WAL along."""

    ignored_on: Any = None
    """The driver's connection in whose transaction a write that binds nobody has run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare()

    def prepare(self) -> None:
        """Give a connection what it shares with no other."""
        self.waiter = Waiter()
        self.idle_blocks = [None]
        # Each in its own dictionary, and in one order: there Python finds them at once.
        self.around, self.sight, self.session_settings = UNKNOWN, None, None
