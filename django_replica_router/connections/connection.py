"""The class of Django's connections to the databases of clusters, and how they come to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from django_replica_router.conf import get_config, parsed
from django_replica_router.connections.cursors import WatchedCursor, watched
from django_replica_router.connections.leading import led_operations
from django_replica_router.connections.mending import REPLICA_FAULT, leave, was_sent
from django_replica_router.connections.observed import Observed
from django_replica_router.connections.on_primary import OnPrimary
from django_replica_router.connections.on_replica import OnPooledReplica, OnReplica
from django_replica_router.connections.read_only import Unrouted
from django_replica_router.connections.rerouting import open_on_primary
from django_replica_router.observations import note_decision, observers
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.recording.finishing import finish_late
from django_replica_router.recording.writes import note_shown
from django_replica_router.replicas.attempts import open_within_bound
from django_replica_router.replicas.attributes import Around, Attributes
from django_replica_router.replicas.discovery import note_connection
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.sights import is_pooled, look_where_expected, waiting_key
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import note_transaction

if TYPE_CHECKING:

    class _Wrapper(BaseDatabaseWrapper):
        def _cursor(self, name: str | None = None) -> CursorWrapper: ...

else:
    _Wrapper = object


class ClusterConnection(Attributes, _Wrapper):
    """Stands in front of the ``DatabaseWrapper`` of a backend: what runs around its statements.

    Of an alias that is in no cluster, and where the package is switched off, everything is the wrapper's.
    """

    around_replicas: Callable[[Around], Around] | None = None
    """Of all connections: makes what runs around the statements of replicas from what would. A test of a
    site has them lag by it. Call ``reread()`` when it is changed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("make_cursor", "make_debug_cursor"):
            own = cls.__dict__.get(name)
            if own is not None:  # it stands in front of those here
                setattr(cls, name, _watching(own))
        make: Any = getattr(super(), "make_cursor", None)
        is_djangos = make is BaseDatabaseWrapper.make_cursor
        if is_djangos and cls.make_cursor is ClusterConnection.make_cursor:
            # A microsecond sooner than what is right for any wrapper.
            cls.make_cursor = cls._make_plain_cursor  # type: ignore[method-assign]
        operations: Any = getattr(cls, "ops_class", None)
        if operations is not None:
            cls.ops_class = led_operations(operations)

    def look_around(self) -> Around:
        """Return what runs around the statements from now on."""
        edition = parsed.edition  # before the settings, which may be newer
        config, alias = get_config(), self.alias
        primary = config.topology.primary_of.get(alias)
        kind: type[Around] = Unrouted
        if primary is not None and config.ENABLED:
            is_replica = alias != primary
            kind = (OnPooledReplica if is_pooled(self) else OnReplica) if is_replica else OnPrimary
        around = kind(alias, primary or alias, config, edition)
        wrap = ClusterConnection.around_replicas
        if wrap is not None and around.is_of_replica:
            around = wrap(around)
        self.around = Observed(around) if observers.present else around
        return self.around

    def get_new_connection(self, conn_params: Any) -> Any:
        """Open the driver's connection; within a bound where a read waits for it."""
        return open_within_bound(self, super().get_new_connection, conn_params)

    def _cursor(self, name: str | None = None) -> CursorWrapper:
        """Return a cursor; of the primary where a connection was closed and cannot be opened anew.

        Django opens it for the cursor, before any wrapper of the statement runs.
        """
        try:
            return super()._cursor(name)
        except Exception as error:
            primary = _primary_behind(self)
            if primary is None:
                raise
            leave(self.alias, primary, self, ReplicaState.UNREACHABLE, str(error))
        count(REPLICA_FAULT)
        note_shown(primary)
        if observers.present:
            reason = Reason.REPLICA_FAILED
            note_decision(primary, reason.name, reason.value, 0.0)
        return open_on_primary(primary, server_side=name is not None)

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        """Return a cursor that has what is around its statements run."""
        return watched(super().make_cursor(cursor))

    def _make_plain_cursor(self, cursor: Any) -> CursorWrapper:
        return WatchedCursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """Return the same where Django keeps a log of queries."""
        return watched(super().make_debug_cursor(cursor))

    def is_usable(self) -> bool:
        """Tell whether the server answers; the waiting is ended where a replica hangs.

        Django asks at the first use of a connection in a request, or at its end (``CONN_HEALTH_CHECKS``,
        and wherever an error has occurred), past all wrappers of statements.
        """
        if not get_config().topology.is_replica(self.alias):
            return super().is_usable()
        key = waiting_key(self, self.alias)
        return in_flight.ask(self.waiter, key, self.connection, super().is_usable)

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        """Switch autocommit, which is how a transaction begins and ends."""
        if not autocommit:
            look_where_expected(self)
        super().set_autocommit(autocommit, *args, **kwargs)
        note_transaction(self)

    def run_and_clear_commit_hooks(self) -> None:
        """Run what the code has put off until the commit, behind which its reader's token must stand by then."""
        finish_late(self)
        super().run_and_clear_commit_hooks()


def _watching(make: Callable[..., CursorWrapper]) -> Callable[..., CursorWrapper]:
    """Return a method that makes cursors, with what is around their statements run as well."""

    @wraps(make)
    def make_watched(connection: Any, cursor: Any) -> CursorWrapper:
        return watched(make(connection, cursor))

    return make_watched


def _primary_behind(connection: BaseDatabaseWrapper) -> str | None:
    """Return the primary that may serve where a connection to a replica cannot be opened.

    Or has broken where Django has not noticed, as between two rows that it fetched. None where it
    stands, and where it is not the package that has sent the reader there.
    """
    alias, topology = connection.alias, get_config().topology
    primary = topology.primary_of.get(alias)
    stands = not getattr(connection.connection, "closed", True)
    if primary is None or stands or connection.in_atomic_block:
        return None
    return primary if topology.is_replica(alias) and was_sent(primary, alias) else None


@cache
def _class_for(kind: Any) -> Any:
    """Return the class that a connection of that class is given, made once."""
    front = ClusterConnection if kind.vendor == "postgresql" else Attributes
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (front, kind), names)


def equip(connection: Any) -> None:
    """Give a connection of Django's the class that it has in this package, whoever has made it."""
    kind: Any = type(connection)
    if not isinstance(connection, Attributes):
        connection.__class__ = _class_for(kind)
        connection.prepare()
        if isinstance(connection, ClusterConnection) and connection.connection is not None:
            note_transaction(connection)  # its settings may have switched autocommit off already
    if isinstance(connection, ClusterConnection):
        operations: Any = type(connection.ops)
        connection.ops.__class__ = led_operations(operations)


def equip_open_connections() -> None:
    """Do so for the connections of this thread that were made before the app was ready."""
    for connection in connections.all(initialized_only=True):
        equip(connection)
        note_connection(connection)


def equip_new_connections() -> None:
    """Do so for each connection as Django makes it, and prepares a query, or opens it."""
    create = connections.create_connection

    def create_equipped(alias: str) -> Any:
        connection = create(str(alias))  # a routed alias would stay in ``connection.alias``
        equip(connection)
        note_connection(connection)
        return connection

    connections.create_connection = create_equipped  # type: ignore[method-assign]
