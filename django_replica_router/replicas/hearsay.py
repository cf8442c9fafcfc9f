"""What other processes tell of servers, and what is told to them."""

from __future__ import annotations

from dataclasses import replace

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.readings import Told, ToldReading


class Hearsay:
    """Takes into account what another process has told, as far as that may be believed."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def take(self, told: Told, until: float) -> None:
        """Take what another process has told into account.

        It counts only for servers, and lives of them, that this process has met itself: an alias
        may lead to another server from here, and a history may have begun that is not told yet.

        Args:
            told: what was told.
            until: moment until which that makes looks of one's own needless.
        """
        known = self.known
        with known.changed:
            before, known.told = known.told, dict.fromkeys(self._believe(told), until)
            doubtful = before.keys() - known.told.keys() - known.servers.endpoints
            for alias in doubtful & told.replicas.keys() & known.readings.keys():
                if known.servers.life(alias) != told.replicas[alias].life:
                    known.forget(alias)
            known.changed.notify_all()
        known.announce()
        for looks in (known.primary_looks, *known.looks.values()):
            if looks.key in doubtful:
                looks.look_anew()

    def _believe(self, told: Told) -> list[str]:
        """Take over what may be believed; return the servers that need no look of one's own."""
        known = self.known
        identity = known.primary_identity
        if identity is None or (identity.system, identity.life) != told.primary:
            return []
        if known.history.timeline != told.sample.position.timeline:
            return []
        if told.sample.at > known.history.sampled_at:
            known.history.samples.append(told.sample)
        aliases = [
            alias
            for alias in known.aliases
            # Of an endpoint each process knows other servers by the same keys.
            if alias not in known.servers.endpoints
            and self._follow(alias, told.replicas.get(alias))
        ]
        if not told.is_down:
            aliases.append(known.primary)
        return aliases

    def _follow(self, alias: str, told: ToldReading | None) -> bool:
        known = self.known
        if told is None or told.life is None or known.servers.life(alias) != told.life:
            return False
        if alias in known.doubted:
            return False
        reading = told.reading
        if reading.state is ReplicaState.AHEAD:
            known.ahead.add(alias)
            known.take(alias, reading)
        if reading.state is not ReplicaState.STREAMING:
            return False  # whether a server can be reached may depend on who asks
        old = known.readings[alias]
        read_at = max(old.read_at, reading.read_at)
        known.take(alias, replace(reading, read_at=read_at, catch_up=old.catch_up))
        return True

    def describe(self) -> Told | None:
        """Return what can be told to other processes, or None where the primary is not known."""
        known = self.known
        with known.changed:
            identity = known.primary_identity
            if identity is None:
                return None
            replicas = {
                alias: ToldReading(known.servers.life(alias), reading)
                for alias, reading in known.readings.items()
                if known.servers.alias_of(alias) not in known.servers.endpoints
            }
            sample = known.history.samples[-1]
            return Told((identity.system, identity.life), sample, known.primary_is_down, replicas)

    def drive(self, until: float) -> None:
        """Have all servers looked at now, and then not before that moment unless driven again."""
        known = self.known
        known.told = dict.fromkeys((known.primary, *known.readings), until)
        if known.primary_is_down:
            for looks in known.looks.values():
                looks.poke()
        else:
            known.primary_looks.poke()  # its sample pokes the others

    def look_alone(self) -> None:
        """Have servers looked at as if there were no other process."""
        self.known.told = {}
        for looks in (self.known.primary_looks, *self.known.looks.values()):
            looks.poke()
