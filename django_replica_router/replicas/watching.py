"""The thread that ends the waiting for servers that hang."""

from __future__ import annotations

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import looks
from django_replica_router.replicas.ending import EndingThread
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.stats import count

# Seconds between two watches over what waits for an answer: usually, and while a look has gone
# unanswered for half of its time.
_WATCHED = looks.PATIENCE / 10
_WATCHED_CLOSELY = looks.PATIENCE / 50

_SUSPICIOUS = looks.PATIENCE / 20
"""Seconds that a statement may wait before the server is looked at."""


class Watcher(EndingThread):
    """Ends the waiting of requests, and of pollers, for servers that do not answer."""

    patience = 0.0

    def __init__(self, health: Health) -> None:
        self.known = health.known
        super().__init__(f"replica-router-monitor-watch-{self.known.primary}")
        self.health = health

    def run(self) -> None:
        while not self._ended.wait(self._pause()):
            self._watch_primary()
            for one in self.known.looks.values():
                self._watch_replica(one)
            for key in tuple(self.known.unwatched):
                in_flight.end(key, looks.PATIENCE)

    def _pause(self) -> float:
        """Return the seconds until servers are watched again: few where one is about to be lost."""
        longest = max((one.busy_for for one in self.known.looks.values()), default=0.0)
        return _WATCHED_CLOSELY if longest > looks.PATIENCE / 2 else _WATCHED

    def _watch_primary(self) -> None:
        known = self.known
        if known.primary_is_down:
            # Nothing but the look at it: TCP, or a pooler, may keep that waiting for minutes.
            in_flight.end(known.primary, looks.PATIENCE)
        if known.history.must_flush(known.clock()):
            known.primary_looks.poke()

    def _watch_replica(self, one: looks.Looks) -> None:
        key, now = one.key, self.known.clock()
        if self._is_questionable(key, now):
            one.poke()
        if one.alias in self.known.servers.led:
            state = self._watch_led(one.alias, now)
        else:
            state = self.known.reading(key).state
        reading = self.known.reading(key)
        if state is ReplicaState.STREAMING and self.health.is_silent(one.alias, key, now, reading):
            self.known.lose(key, ReplicaState.SILENT, "")
            state = ReplicaState.SILENT
        # A pooler keeps those waiting, too, who ask for a server that cannot be reached.
        if state is ReplicaState.SILENT or one.is_waiting:
            # Where nothing else was answered either, who asked last waits in vain as well.
            is_mute = one.is_waiting and in_flight.is_mute(key, looks.PATIENCE)
            for _ in range(in_flight.end(key, 0.0 if is_mute else looks.PATIENCE)):
                count("waits_ended")

    def _watch_led(self, alias: str, now: float) -> ReplicaState:
        """Return whether one of the servers of an alias hangs, where each look may meet another one.

        One that was not met lately need not hang: it does where a statement has waited for long, and
        it was met shortly before that and not since.
        """
        wait, silence = in_flight.longest_wait(alias), self.health.silence
        for key in self.known.servers.keys(alias):
            reading = self.known.reading(key)
            state, age = reading.state, now - reading.read_at
            is_mute = wait > silence and wait <= age < wait + silence
            if is_mute and state is ReplicaState.STREAMING:
                self.known.lose(key, ReplicaState.SILENT, "")
                return ReplicaState.SILENT
            if state is ReplicaState.SILENT and age < looks.MAX_CONNECTION_AGE:
                return ReplicaState.SILENT
        return ReplicaState.UNKNOWN

    def _is_questionable(self, key: str, now: float) -> bool:
        """Tell whether a look must show if a statement takes long, or the server hangs."""
        wait = in_flight.shortest_wait(key, _SUSPICIOUS)
        # A look since it was sent has shown that. Where statements always take long, one is taken
        # every quarter of a second for those that go on, and at each watch for those that are new.
        read_at = self.known.reading(key).read_at
        return wait is not None and now - read_at > min(wait, looks.PATIENCE / 4)
