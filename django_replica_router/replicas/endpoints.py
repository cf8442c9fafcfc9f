"""Looking at the servers behind an alias that may lead to several, as a reader endpoint does.

The alias's own poller looks at whichever server it meets first. Further ones are met by a few
connections more; each of them stays with its server, and goes on as a poller of that one.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Collection, Mapping
from typing import Any

import psycopg

from django_replica_router.logs import logger
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.answers import Answers
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.looks import CONNECT_TIMEOUT, MAX_CONNECTION_AGE, Looks
from django_replica_router.replicas.pollers import ReplicaPoller
from django_replica_router.replicas.readings import Reading
from django_replica_router.sql import answering, opening, standby
from django_replica_router.values.servers import Life, without

# So many connections in a row that lead to no new server are taken for a sign that there is none.
_TRIES = 3
# Seconds after which others are looked for where the one that is known does not serve.
_UNSERVED = 5.0
# More servers than an endpoint has: a pooler may make up lives without end.
_MOST = 50

Met = tuple[psycopg.Connection[Any], answering.ServerIdentity]


class ServerLeftError(Exception):
    """A connection leads to its server no more, or another one looks at that server."""


class Scout(threading.Thread):
    """Opens connections of an alias until it meets no new server.

    Args:
        alias: the alias.
        known: servers that are no news.
        tries: connections in a row after which there are no more.
    """

    def __init__(self, alias: str, known: Collection[Life], tries: int) -> None:
        self.key = f"{alias} scout"
        super().__init__(name=f"replica-router-monitor-{self.key}", daemon=True)
        self._alias = alias
        self._known = set(known)
        self._tries = tries
        self._opened: list[psycopg.Connection[Any]] = []
        self._met: list[Met] = []
        self._lock = threading.Lock()
        self._is_given_up = False
        self.is_done = False

    def run(self) -> None:
        try:
            self._look_around()
        except Exception as error:  # a server may fail in any way: what was met counts
            logger.debug("No further server behind %r was met: %s", self._alias, error)
        for connection in self._opened:
            self._put_at_rest(connection)
        with self._lock:
            kept = [] if self._is_given_up else [connection for connection, _ in self._met]
            self.is_done = True
        for connection in self._opened:
            if connection not in kept:
                connection.close()

    def _look_around(self) -> None:
        misses = 0
        # All are held until the last one is there, in a transaction each: who balances by the number of
        # connections, or gives one server connection to many clients, would lead all to one server.
        while misses < self._tries and len(self._opened) < _MOST and not self._is_given_up:
            connection = opening.connect(self._alias, CONNECT_TIMEOUT)
            self._opened.append(connection)
            connection.autocommit = False
            with in_flight.waiting(self.key, connection):
                identity = answering.identify(connection)
            misses += 1
            if identity.life not in self._known:
                self._known.add(identity.life)
                self._met.append((connection, identity))
                misses = 0

    def _put_at_rest(self, connection: psycopg.Connection[Any]) -> None:
        # Else a pooler closes its server's connection as well. A server may hang, as with any question.
        with contextlib.suppress(psycopg.Error), in_flight.waiting(self.key, connection):
            connection.rollback()
            connection.autocommit = True

    def take(self) -> list[Met]:
        """Return the servers that were met, each with a connection to it; give up where it goes on."""
        with self._lock:
            self._is_given_up = True
            met, self._met = self._met if self.is_done else [], []
        return met

    def discard(self) -> None:
        """Give up, and close what was met."""
        for connection, _ in self.take():
            connection.close()


class EndpointPoller(ReplicaPoller):
    """Looks at the server that an alias leads to, and finds out whether it leads to others as well.

    Where a pooler leads each statement anywhere, it looks at whoever answers.
    """

    def __init__(self, answers: Answers, health: Health, looks: Looks) -> None:
        super().__init__(answers, looks)
        self.health = health
        self.companions: Mapping[str, Companion] = {}
        self._suspect: Life | None = None
        self._is_doubted = False
        self._scout: Scout | None = None
        self._scouted_after: list[Life] = []
        self._scouted_at = -math.inf
        self._line: psycopg.Connection[Any] | None = None
        self._is_direct: bool | None = None
        self._is_settled = True
        self._tries = 0

    @property
    def _is_led(self) -> bool:
        return self.alias in self.known.servers.led

    def all(self) -> tuple[ReplicaPoller, ...]:
        """Return the pollers of all servers of the alias, itself first."""
        return (self, *self.companions.values())

    def suspect(self, life: Life) -> None:
        """Take into account that a request met another server under this alias.

        One that is known to be over was met before its end, and proves nothing.
        """
        if life not in self._lives:
            self._suspect = life
        self._is_doubted = True
        self.look_around()

    def look_around(self, tries: int = _TRIES) -> None:
        """Have it found out to which further servers the alias leads."""
        self._tries = max(self._tries, tries)
        self.looks.poke()

    def run(self) -> None:
        super().run()
        if self._scout is not None:
            self._scout.discard()

    def _connect(self) -> psycopg.Connection[Any]:
        age = self.known.clock() - self.looks.connected_at
        if self.alias in self.known.servers.endpoints and MAX_CONNECTION_AGE < age < math.inf:
            # A new connection may lead to another server, and this one would be known no more.
            self.looks.connected_at = self.known.clock()
            self.look_around(tries=1)
        return super()._connect()

    def identify(self, connection: psycopg.Connection[Any]) -> None:
        super().identify(connection)
        if self._is_direct is None:
            self._is_direct = not may_lead_elsewhere(connection, self.looks.identity)
            self._is_settled = self._is_direct

    def _look_in_flight(self) -> None:
        is_doubted, self._is_doubted = self._is_doubted, False
        try:
            super()._look_in_flight()
        except psycopg.Error:
            if not is_doubted:
                raise
            self._close()  # as it seems, its server was started anew
            super()._look_in_flight()
        if not self._is_settled:
            # Before anybody is served: else what is shown of one server is not remembered, and
            # another one may show less.
            self._begin_scouting(_TRIES).run()
            self._is_settled = True
            super()._look_in_flight()

    def look(self, connection: psycopg.Connection[Any]) -> None:
        if not self._is_led:
            super().look(connection)
            return
        read_at = self.known.clock()
        answer = answering.ask_server(connection)
        self._follow_chase(-1 if answer.replayed is None else answer.replayed)
        self.answers.publish_answer(self.alias, answer, read_at, self._catch_up)

    def _state(self, answer: standby.ReplicaAnswer) -> ReplicaState:
        return super()._state(answer) if self._is_settled else ReplicaState.UNKNOWN

    def _note_life(self, life: Life) -> None:
        before = self.life
        # A life that is over does not come back: several servers answer.
        came_back = life != before and life in self._lives
        is_another = life == before and self._suspect not in (None, life)
        is_same_line, self._line = self._line is self._connection, self._connection
        self._suspect = None
        super()._note_life(life)
        if came_back or is_another:
            self.known.note_endpoint(self.alias)
            self._tries = _TRIES
        if is_same_line and before not in (None, life):
            # Behind a pooler: the one before has ended, or both answer in turn.
            if came_back:
                self.known.note_endpoint(self.alias, is_led=True)
            self.looks.wake.set()
        self._adopt_met()

    def _adopt_met(self) -> None:
        """Have those servers looked at that were met by the way.

        Who answered before they were met, and answers after, has not become one of them; and who
        had another life before, and is met again, has not ended.
        """
        scout = self._scout
        if scout is None or not scout.is_done:
            return
        self._scout = None
        former = self._scouted_after[:-1]
        present = self._scouted_after[-1] if self._scouted_after else None
        for connection, identity in scout.take():
            is_new = not self.known.servers.knows(self.alias, identity.life)
            is_another = self.life == present or identity.life in former
            if is_new and is_another and not self._is_led:
                self.adopt(connection, identity)
            else:
                connection.close()
        if self.life != present:
            self.look_around()

    def adopt(
        self, connection: psycopg.Connection[Any], identity: answering.ServerIdentity
    ) -> None:
        """Have a further server looked at, over a connection that leads to it."""
        with self.known.changed:
            if not (self.is_over or self.known.stopped):
                looks = self.known.look_at(self.alias, identity.life)
                companion = Companion(self, looks, connection, identity)
                self.companions = {**self.companions, looks.key: companion}
                companion.start()
                return
        connection.close()  # the alias has left meanwhile

    def drop(self, key: str, error: Exception) -> None:
        """Look no more at a further server: its connection has ended, or leads to it no more."""
        if not isinstance(error, ServerLeftError):
            self.known.lose(key, ReplicaState.UNREACHABLE, error)
        is_missed = self.known.drop(key)
        with self.known.changed:
            self.companions = without(self.companions, key)
        if is_missed:
            self.look_around()

    def _begin_scouting(self, tries: int) -> Scout:
        lives = [
            life for life in (self.life, self.looks.identity and self.looks.identity.life) if life
        ]
        lives += self.known.servers.lives(self.alias)
        self._scout = scout = Scout(self.alias, lives, tries)
        if scout.key not in self.known.unwatched:
            self.known.unwatched.append(scout.key)
        self._scouted_after, self._scouted_at = list(self._lives), self.known.clock()
        self._tries = 0
        return scout

    def next_delay(self) -> float:
        since = self.known.clock() - self._scouted_at
        is_bad = self.health.replica(self.alias).state is not ReplicaState.STREAMING
        if is_bad and self._is_direct is False and since > _UNSERVED:
            self._tries = _TRIES  # no request goes there that might meet a better one
        is_due = since >= self.known.interval / 4
        if self._tries and is_due and self._scout is None and not self._is_led:
            self._begin_scouting(self._tries).start()
        return super().next_delay()

    def latest(self) -> Reading | Replica:
        return self.health.replica(self.alias) if self._is_led else super().latest()


def may_lead_elsewhere(
    connection: psycopg.Connection[Any] | None, identity: answering.ServerIdentity | None
) -> bool:
    """Tell whether new connections may lead to another server than this one does.

    They do not where the server itself was connected to, by the only address there is.
    """
    if connection is None or identity is None:
        return False
    if identity.is_pooled:
        return True
    info = connection.info
    given = info.get_parameters()
    host = given.get("hostaddr") or given.get("host", "")  # libpq's own order
    _, address, port = identity.life
    if address is None:  # by a socket of this machine
        return not host.startswith("/")
    if address.partition("/")[0] != info.hostaddr or port != info.port or "," in host:
        return True
    try:
        addresses = {place[4][0] for place in socket.getaddrinfo(host, port)}
    except OSError:
        return True
    return addresses != {info.hostaddr}


class Companion(ReplicaPoller):
    """Looks at a further server behind an alias, for as long as its connection leads there.

    Args:
        endpoint: looks at the alias.
        connection: leads to the server.
        identity: which server that is.
    """

    def __init__(
        self,
        endpoint: EndpointPoller,
        looks: Looks,
        connection: psycopg.Connection[Any],
        identity: answering.ServerIdentity,
    ) -> None:
        super().__init__(endpoint.answers, looks)
        self._endpoint = endpoint
        looks.identity = identity
        self._lives = [identity.life]
        self._connection = connection
        self._is_known = True

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._connection
        if connection is None or connection.closed:
            message = "Its connection has ended."
            raise ServerLeftError(message)
        return connection

    def _note_life(self, life: Life) -> None:
        if life != self.life:
            # A connection without a pooler, or one of a session, never does.
            self.known.note_endpoint(self.alias, is_led=True)
        if self.alias in self.known.servers.led or self.known.servers.life(self.alias) == life:
            message = "Another poller looks at it."
            raise ServerLeftError(message)

    def failed(self, error: Exception) -> None:
        self.end()
        self._endpoint.drop(self.looks.key, error)
