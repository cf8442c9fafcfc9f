"""What servers have told of themselves, and what follows for them."""

from __future__ import annotations

from dataclasses import replace

from django_replica_router.logs import fields, logger
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.looks import MAX_CONNECTION_AGE
from django_replica_router.replicas.news import UNKNOWN
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.sql.answering import Answerer
from django_replica_router.values.servers import Life


class Answers:
    """Takes into account what servers answer: to pollers, and to requests."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def publish_sample(self, sample: Sample) -> None:
        """Take a new position of the primary into account, and have the replicas looked at."""
        known = self.known
        with known.changed:
            if known.history.timeline != sample.position.timeline:
                self._begin_history(sample)
            else:
                known.history.samples.append(sample)
            for key, reading in known.readings.items():
                # A standby only ever has WAL that its primary has on disk.
                if reading.watermark > sample.position.lsn and reading.told_at < sample.at:
                    known.ahead.add(key)
                    known.set(key, Reading(ReplicaState.AHEAD, read_at=sample.at))
            known.changed.notify_all()
        known.announce()
        for looks in known.looks.values():
            looks.poke()

    def _begin_history(self, sample: Sample) -> None:
        known = self.known
        if known.history.samples:
            logger.warning(
                "The primary %r is on timeline %d now: its replicas count again once they have "
                "replayed it.",
                known.primary,
                sample.position.timeline,
                extra=fields(
                    "timeline_changed", primary=known.primary, timeline=sample.position.timeline
                ),
            )
        known.history.begin(sample)
        known.ahead.clear()
        for key, reading in known.readings.items():
            known.set(
                key, replace(UNKNOWN, remark=reading.remark)
            )  # else it would be told as gone, and as new

    def publish_reading(self, key: str, reading: Reading) -> None:
        """Take a look at a server into account: its state, and what it has replayed."""
        known = self.known
        with known.changed:
            known.doubted.discard(key)
            known.take(key, reading)
            known.changed.notify_all()
        known.announce()

    def publish_answer(
        self, alias: str, answer: Answerer, read_at: float, catch_up: float | None = None
    ) -> None:
        """Take what a server behind an alias has told of itself into account.

        Args:
            alias: an endpoint.
            answer: all that it was asked.
            read_at: moment before it was asked.
            catch_up: as in ``Reading``; None for what it was.
        """
        known = self.known
        state = self.state_of(answer)
        with known.changed:
            if alias not in known.readings:
                return  # it has left meanwhile
            key = known.servers.key(alias, answer.life) or known.add(alias, answer.life)
            if read_at < known.reading(key).read_at:
                return
            known.doubted.discard(key)
            known.servers.has_told(alias, answer.life)
            replayed = -1 if answer.replayed is None else answer.replayed
            took = known.reading(alias).catch_up if catch_up is None else catch_up
            known.take(key, Reading(state, replayed, read_at=read_at, catch_up=took))
            for other in known.servers.keys(alias):
                reading = known.readings[other] = replace(known.reading(other), catch_up=took)
                is_gone = read_at - reading.read_at > MAX_CONNECTION_AGE
                if is_gone and other not in known.looks:
                    known.remove(other)
            known.changed.notify_all()
        known.announce()

    def note_replayed(self, alias: str, life: Life, lsn: int) -> None:
        """Take into account what a replica has told a request.

        It counts where the server is one that was looked at, and was in good health then.
        """
        known = self.known
        with known.changed:
            key = known.servers.key(alias, life)
            # One that others have met in another life is in doubt.
            if key is None or key in known.doubted:
                return
            reading = known.reading(key)
            if reading.state is ReplicaState.STREAMING and lsn >= reading.watermark:
                known.take(key, replace(reading, watermark=lsn))
                known.changed.notify_all()
        known.announce()

    def state_of(self, answer: Answerer) -> ReplicaState:
        """Return the health of a server that has told all of itself."""
        primary = self.known.primary_identity
        if primary is None:
            return ReplicaState.UNKNOWN
        if answer.system != primary.system:
            return ReplicaState.FOREIGN
        if not answer.in_recovery:
            is_primary = answer.life == primary.life
            return ReplicaState.PRIMARY if is_primary else ReplicaState.PROMOTED
        if answer.timeline != self.known.history.timeline:
            return ReplicaState.TIMELINE
        return ReplicaState.NO_POSITION if answer.replayed is None else ReplicaState.STREAMING
