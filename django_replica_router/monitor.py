"""What this process knows of the servers of a cluster."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from django_replica_router import postgres, signals
from django_replica_router.inflight import in_flight
from django_replica_router.mirrors import is_test_mirror
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.pollers import (
    CONNECT_TIMEOUT,
    PATIENCE,
    Poller,
    PrimaryPoller,
    ReplicaPoller,
)
from django_replica_router.readings import Reading, Sample, Told, ToldReading, Wanted
from django_replica_router.stats import count

logger = logging.getLogger("django_replica_router")

T = TypeVar("T")

_SAMPLES = 1024
_GONE = ReplicaState.UNREACHABLE

# Seconds between two watches over what waits for an answer: usually, and while a look has gone
# unanswered for half of its time.
_WATCHED = PATIENCE / 10
_WATCHED_CLOSELY = PATIENCE / 50

_SUSPICIOUS = PATIENCE / 20
"""Seconds that a statement may wait before the server is looked at."""


class Monitor:
    """Looks at one cluster: a thread for each server, so that one that hangs delays no other.

    Readings are frozen values in a dict and may be read without a lock.

    Args:
        primary: alias of the primary.
        replicas: aliases of its replicas.
        interval: seconds between two looks.
        clock: a monotonic clock.
    """

    looks_itself = True
    """It asks the servers, and knows which server each alias is."""

    def __init__(
        self,
        primary: str,
        replicas: Sequence[str],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.primary = primary
        self.interval = interval
        self.clock = clock
        self.stopped = False
        self.wanted = Wanted()
        self._aliases = tuple(replicas)
        self.readings: dict[str, Reading] = dict.fromkeys(replicas, Reading())
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._changed = threading.Condition()
        # Where the present timeline was first seen: what a replica replayed before that may be
        # of another history, and does not count.
        self._baseline = -1
        self._ahead: set[str] = set()
        self._born_at: dict[str, float] = {}
        # Until when somebody else sees to a server, so that its poller may rest; and the replicas
        # that failed here, where only a look of this process's own counts.
        self._told: dict[str, float] = {}
        self._doubted: set[str] = set()
        self._news: list[tuple[str, ReplicaState, ReplicaState, str]] = []
        self._primary_poller = PrimaryPoller(self, primary)
        self._ended = threading.Event()
        self._watcher = threading.Thread(
            target=self.watch, name=f"replica-router-monitor-watch-{primary}", daemon=True
        )
        self._pollers = {alias: ReplicaPoller(self, alias) for alias in replicas}
        # A reading that is older than this is no knowledge, whatever has become of the poller.
        self._silence = 3 * interval + CONNECT_TIMEOUT

    def start(self) -> None:
        """Start the threads."""
        for poller in (self._primary_poller, *self._pollers.values()):
            poller.start()
        self._watcher.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the threads, and wait at most ``timeout`` seconds for them.

        One that hangs on its server is left behind: it is a daemon, and keeps no process alive.
        """
        self.stopped = True
        self._ended.set()
        pollers = (self._primary_poller, *self._pollers.values())
        for poller in pollers:
            poller.end()
        deadline = time.monotonic() + timeout
        for poller in pollers:
            if poller.is_alive():
                poller.join(max(0.0, deadline - time.monotonic()))

    def serves(self, replicas: Sequence[str], interval: float) -> bool:
        """Tell whether it looks at those replicas, that often."""
        return self.interval == interval and self._aliases == tuple(replicas)

    @property
    def primary_identity(self) -> postgres.ServerIdentity | None:
        """Which server the primary's alias reaches, or None before the first sample."""
        return self._primary_poller.identity if self._samples else None

    @property
    def primary_is_down(self) -> bool:
        """The last attempt to sample the primary has failed, or has been waiting for too long."""
        return self._primary_poller.has_failed or self._primary_poller.is_waiting

    @property
    def timeline(self) -> int | None:
        """The primary's timeline as last seen, or None before the first sample."""
        return self._samples[-1].position.timeline if self._samples else None

    def life(self, alias: str) -> tuple[object, ...] | None:
        """Return which server an alias reaches, and which life of it, as last seen."""
        return self._pollers[alias].life

    @property
    def sampled_at(self) -> float:
        """Moment of the last sample of the primary, or minus infinity before the first."""
        return self._samples[-1].at if self._samples else -math.inf

    def replicas(self) -> list[Replica]:
        """Return what is known of each replica now."""
        return [self.replica(alias) for alias in self.readings]

    def replica(self, alias: str) -> Replica:
        """Return what is known of one replica now."""
        now = self.clock()
        reading = self.readings[alias]
        state = reading.state
        if state is ReplicaState.STREAMING and self._is_silent(alias, now):
            state = ReplicaState.SILENT
        return Replica(alias, state, reading.watermark, now - reading.fresh_at)

    def _is_silent(self, alias: str, now: float) -> bool:
        return self._pollers[alias].is_waiting or now - self.readings[alias].read_at > self._silence

    def watch(self) -> None:
        """End the waiting for servers that do not answer, again and again."""
        while not self._ended.wait(self._watch_pause()):
            if self.primary_is_down:
                # Nothing but the look at it: TCP, or a pooler, may keep that waiting for minutes.
                in_flight.end(self.primary, PATIENCE)
            for alias, poller in self._pollers.items():
                self._watch_replica(alias, poller)

    def _watch_pause(self) -> float:
        """Return the seconds until servers are watched again: few where one is about to be lost."""
        longest = max((poller.busy_for for poller in self._pollers.values()), default=0.0)
        return _WATCHED_CLOSELY if longest > PATIENCE / 2 else _WATCHED

    def _watch_replica(self, alias: str, poller: ReplicaPoller) -> None:
        now = self.clock()
        if self._is_questionable(alias, now):
            poller.poke()
        state = self.readings[alias].state
        if state is ReplicaState.STREAMING and self._is_silent(alias, now):
            self.lose(alias, ReplicaState.SILENT, "")
            state = ReplicaState.SILENT
        # A pooler keeps those waiting, too, who ask for a server that cannot be reached.
        if state is ReplicaState.SILENT or poller.is_waiting:
            # Where nothing else was answered either, who asked last waits in vain as well.
            is_mute = poller.is_waiting and in_flight.is_mute(alias, PATIENCE)
            for _ in range(in_flight.end(alias, 0.0 if is_mute else PATIENCE)):
                count("waits_ended")

    def _is_questionable(self, alias: str, now: float) -> bool:
        """Tell whether a look must show if a statement takes long, or the server hangs."""
        wait = in_flight.shortest_wait(alias, _SUSPICIOUS)
        # A look since it was sent has shown that. Where statements always take long, one is taken
        # every quarter of a second for those that go on, and at each watch for those that are new.
        return wait is not None and now - self.readings[alias].read_at > min(wait, PATIENCE / 4)

    # What the threads report.

    def publish_sample(self, sample: Sample) -> None:
        """Take a new position of the primary into account."""
        with self._changed:
            if self.timeline != sample.position.timeline:
                self._begin_history(sample)
            self._samples.append(sample)
            for alias, reading in self.readings.items():
                # A standby only ever has WAL that its primary has on disk.
                if reading.watermark > sample.position.lsn and reading.told_at < sample.at:
                    self._ahead.add(alias)
                    self._set(alias, Reading(ReplicaState.AHEAD, read_at=sample.at))
            self._changed.notify_all()
        self._announce()
        for poller in self._pollers.values():
            poller.poke()

    def _begin_history(self, sample: Sample) -> None:
        if self._samples:
            logger.warning(
                "The primary %r is on timeline %d now: its replicas count again once they have "
                "replayed it.",
                self.primary,
                sample.position.timeline,
            )
            self._baseline = sample.position.lsn
        self._samples.clear()
        self._ahead.clear()
        self.wanted = Wanted()
        for alias in self.readings:
            self._set(alias, Reading())

    def publish_reading(self, alias: str, reading: Reading) -> None:
        """Take a look at a replica into account: its state, and what it has replayed."""
        with self._changed:
            self._doubted.discard(alias)
            self._take(alias, reading)
            self._changed.notify_all()
        self._announce()

    def _take(self, alias: str, reading: Reading) -> None:
        old = self.readings[alias]
        reading = reading._replace(told_at=self.clock())
        if alias in self._ahead:
            reading = reading._replace(state=ReplicaState.AHEAD)
        elif reading.watermark < self._baseline:
            reading = reading._replace(state=ReplicaState.UNKNOWN)
        if reading.state is ReplicaState.STREAMING:
            watermark = max(old.watermark, reading.watermark)
            fresh_at = self._fresh_at(alias, watermark, max(old.fresh_at, reading.fresh_at))
            reading = reading._replace(watermark=watermark, fresh_at=fresh_at)
        else:
            reading = reading._replace(watermark=-1)
        self._set(alias, reading)

    def note_replayed(self, alias: str, life: tuple[object, ...], lsn: int) -> None:
        """Take into account what a replica has told a request.

        It counts where the server is the one that was looked at last, and was in good health then.
        """
        with self._changed:
            # One that is being forgotten at this moment has the old life yet, and is in doubt.
            if self._pollers[alias].life != life or alias in self._doubted:
                return
            reading = self.readings[alias]
            if reading.state is ReplicaState.STREAMING and lsn > reading.watermark:
                self._take(alias, reading._replace(watermark=lsn))
                self._changed.notify_all()
        self._announce()

    def _fresh_at(self, alias: str, watermark: int, fresh_at: float) -> float:
        # A standby that was started anew may show less than it did before: nobody has seen more
        # there, or anywhere, than the primary had when the start was noticed.
        least = max(fresh_at, self._born_at.get(alias, -math.inf))
        for sample in reversed(self._samples):
            if sample.at <= least:
                break
            if sample.position.lsn <= watermark:
                return sample.at
        return fresh_at

    def forget(self, alias: str) -> None:
        """Forget what a replica had replayed: it is not the server that it was."""
        with self._changed:
            self._ahead.discard(alias)
            # What others tell may be of the server that it was: a look of one's own comes first.
            self._doubted.add(alias)
            self._born_at[alias] = self.clock()
            self.readings[alias] = Reading(self.readings[alias].state)

    def lose(self, alias: str, state: ReplicaState, error: Exception | str) -> None:
        """Take a replica out, until a look at it succeeds."""
        with self._changed:
            self._doubted.add(alias)
            if self.readings[alias].state is ReplicaState.SILENT and state is _GONE:
                state = ReplicaState.SILENT  # its connection was ended because of that
            self._set(alias, Reading(state, read_at=self.clock()), str(error))
        self._announce()

    # What other processes tell.

    def publish_told(self, told: Told, until: float) -> None:
        """Take what another process has told into account.

        It counts only for servers, and lives of them, that this process has met itself: an alias
        may lead to another server from here, and a history may have begun that is not told yet.

        Args:
            told: what was told.
            until: moment until which that makes looks of one's own needless.
        """
        with self._changed:
            before, self._told = self._told, dict.fromkeys(self._believe(told), until)
            doubtful = before.keys() - self._told.keys()
            for alias in doubtful & told.replicas.keys() & self.readings.keys():
                if self.life(alias) != told.replicas[alias].life:
                    self.forget(alias)
            self._changed.notify_all()
        self._announce()
        for alias in doubtful:
            self._poller(alias).look_anew()

    def _believe(self, told: Told) -> list[str]:
        """Take over what may be believed; return the servers that need no look of one's own."""
        position = told.sample.position
        identity = self.primary_identity
        if identity is None or (identity.system, identity.life) != told.primary:
            return []
        if self.timeline != position.timeline:
            return []
        if told.sample.at > self.sampled_at:
            self._samples.append(told.sample)
        aliases = [
            alias for alias in self.readings if self._follow(alias, told.replicas.get(alias))
        ]
        if not told.is_down:
            aliases.append(self.primary)
        return aliases

    def _follow(self, alias: str, told: ToldReading | None) -> bool:
        if told is None or told.life is None or self.life(alias) != told.life:
            return False
        if alias in self._doubted:
            return False
        reading = told.reading
        if reading.state is ReplicaState.AHEAD:
            self._ahead.add(alias)
            self._take(alias, reading)
        if reading.state is not ReplicaState.STREAMING:
            return False  # whether a server can be reached may depend on who asks
        old = self.readings[alias]
        self._take(
            alias,
            reading._replace(read_at=max(old.read_at, reading.read_at), catch_up=old.catch_up),
        )
        return True

    def drive(self, until: float) -> None:
        """Have all servers looked at now, and then not before that moment unless driven again."""
        self._told = dict.fromkeys((self.primary, *self.readings), until)
        if self.primary_is_down:
            for poller in self._pollers.values():
                poller.poke()
        else:
            self._primary_poller.poke()  # its sample pokes the others

    def look_alone(self) -> None:
        """Have servers looked at as if there were no other process."""
        self._told = {}
        for poller in (self._primary_poller, *self._pollers.values()):
            poller.poke()

    def is_told(self, alias: str) -> bool:
        """Tell whether a look at a server can wait, since somebody else sees to it.

        Who looks at a replica samples the primary as well: that a replica is ahead shows only
        where both moments are known well.
        """
        if alias != self.primary:
            return alias not in self._doubted and self.clock() < self._told.get(alias, -math.inf)
        return self.clock() < self._told.get(alias, -math.inf) and all(
            self.is_told(replica)
            for replica, reading in self.readings.items()
            if reading.state is ReplicaState.STREAMING
        )

    def describe(self) -> Told | None:
        """Return what can be told to other processes, or None where the primary is not known."""
        with self._changed:
            identity = self.primary_identity
            if identity is None:
                return None
            replicas = {
                alias: ToldReading(self._pollers[alias].life, reading)
                for alias, reading in self.readings.items()
            }
            return Told(
                (identity.system, identity.life), self._samples[-1], self.primary_is_down, replicas
            )

    def _poller(self, alias: str) -> Poller:
        return self._primary_poller if alias == self.primary else self._pollers[alias]

    def _set(self, alias: str, reading: Reading, detail: str = "") -> None:
        old = self.readings[alias]
        is_news = reading.state is not old.state
        if is_news:
            self._news.append((alias, old.state, reading.state, detail or reading.remark))
        # The news of one that does not serve tells what is unusual about it as well.
        is_told = is_news and reading.state is not ReplicaState.STREAMING
        is_remarkable = reading.remark != old.remark and not is_told
        if is_remarkable and not is_test_mirror(alias, self.primary):
            logger.warning("Replica %r: %s.", alias, reading.remark or "nothing unusual any more")
        self.readings[alias] = reading

    def _announce(self) -> None:
        # Outside the lock: who listens may take his time. So several threads may be at it. One that
        # hung when the monitor was stopped has no news of the one that came after it.
        while not self.stopped:
            try:
                alias, before, state, detail = self._news.pop(0)
            except IndexError:
                return
            if state is ReplicaState.STREAMING:
                logger.info("Replica %r serves.", alias)
                signals.replica_restored.send_robust(sender=alias)
            elif state is ReplicaState.PRIMARY and is_test_mirror(alias, self.primary):
                logger.debug("Replica %r is a mirror, as in every test run.", alias)
            else:
                logger.warning("Replica %r does not serve: %s. %s", alias, state.value, detail)
                if before is ReplicaState.STREAMING:  # else there is only another reason
                    signals.replica_lost.send_robust(sender=alias, state=state)

    # What requests ask.

    def want(self, lsn: int, age: float) -> float:
        """Have replicas looked at closely until they have replayed a position.

        Args:
            lsn: the position.
            age: seconds since it was written, as far as that is known.

        Returns:
            the same, as far as it is known here. A reader who is sent to the primary again and
            again has a token as young as the last time, and yet of the same position.
        """
        wanted = self.wanted
        if lsn > wanted.lsn:
            self.wanted = wanted = Wanted(lsn, self.clock() - age)
        for alias, poller in self._pollers.items():
            if self.readings[alias].watermark < lsn:
                poller.poke()
        # What lies at or before a position was written no later.
        return max(age, self.clock() - wanted.written_at)

    def expects(self, age: float, within: float, alias: str | None = None) -> bool:
        """Tell whether a position of that age should be replayed so soon.

        Args:
            age: seconds since it was written.
            within: seconds from now.
            alias: by that replica; by any of them when None.
        """
        return any(
            reading.state is ReplicaState.STREAMING and reading.catch_up - age <= within
            for name, reading in self.readings.items()
            if alias in (None, name)
        )

    def wait_for_all(self, lsn: int, timeout: float, max_lag: float = math.inf) -> bool:
        """Wait until every replica in service has replayed a position; tell whether they have.

        Args:
            lsn: the position.
            timeout: seconds that may be waited.
            max_lag: seconds; a replica whose data is older is not in service.
        """
        self.want(lsn, 0.0)

        def is_in_service(reading: Reading) -> bool:
            if reading.state is ReplicaState.STREAMING:
                return self.clock() - reading.fresh_at <= max_lag
            # Of which nothing is known here, as right after the start: another process may know
            # already that it serves.
            return reading.state is ReplicaState.UNKNOWN

        def have_all() -> bool | None:
            readings = self.readings.values()
            return not any(r.watermark < lsn and is_in_service(r) for r in readings) or None

        return self.wait_for(have_all, timeout) is not None

    def has_looked_since(self, moment: float, replicas: Iterable[Replica]) -> bool:
        """Tell whether those of the replicas that are in service were looked at since then."""
        return all(
            self.readings[replica.alias].read_at >= moment
            for replica in replicas
            if replica.state is ReplicaState.STREAMING
        )

    def refresh(self, max_lag: float) -> None:
        """Have the primary sampled now, if the last sample is too old to prove so small a lag."""
        if self.clock() - self.sampled_at > max_lag / 4:
            self._primary_poller.poke()

    def is_same_server(self, alias: str, life: tuple[object, ...]) -> bool:
        """Tell whether a request has met the server that the monitor looks at.

        Where it has not, the server was started anew a moment ago, or the alias is several.
        """
        if self.life(alias) == life:
            return True
        self._pollers[alias].suspect(life)
        return False

    def report(
        self, alias: str, error: Exception | str, state: ReplicaState = ReplicaState.UNREACHABLE
    ) -> None:
        """Take out a replica that failed a request, and look at it at once."""
        self.lose(alias, state, error)
        self._pollers[alias].poke()

    def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """Return what ``look`` finds, called after each new reading, or None after the time-out.

        The test comes before the first wait, and there is no wait after the last test.
        """
        found: list[T] = []

        def has_found() -> bool:
            result = look()
            if result is not None:
                found.append(result)
            return bool(found)

        with self._changed:
            self._changed.wait_for(has_found, timeout)
        return found[0] if found else None
