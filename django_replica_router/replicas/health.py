"""How each replica is at this moment, by what is known of it and by the looks at it."""

from __future__ import annotations

from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.looks import CONNECT_TIMEOUT
from django_replica_router.replicas.news import UNKNOWN as UNREAD
from django_replica_router.replicas.readings import Reading
from django_replica_router.values.servers import Life
from django_replica_router.values.tokens import Position

# Python finds a name of the module at once, and a member of an enum by a slower way.
_STREAMING = ReplicaState.STREAMING

PRIMARY, DOWN, UNKNOWN, LAGGING = "PRIMARY", "DOWN", ReplicaState.UNKNOWN.name, "LAGGING"


def condition(replica: Replica, max_lag: float) -> str:
    """Return how a replica is, as people are told: the name of its state, or "LAGGING".

    Args:
        replica: what is known of it now.
        max_lag: seconds by which its data may be old.
    """
    is_late = replica.state is ReplicaState.STREAMING and not replica.age <= max_lag
    return LAGGING if is_late else replica.state.name


class Health:
    """The replicas as requests may take them: a server that has not told of itself lately is silent."""

    def __init__(self, known: Known) -> None:
        self.known = known
        # A reading that is older than this is no knowledge, whatever has become of the poller.
        self.silence = 3 * known.interval + CONNECT_TIMEOUT

    def replicas(self) -> list[Replica]:
        """Return what is known of each replica now."""
        return [self.replica(alias) for alias in self.known.aliases]

    def replica(self, alias: str, life: Life | None = None) -> Replica:
        """Return what is known of one replica now.

        Args:
            alias: its alias.
            life: of an endpoint, the server that is meant; the best one where it is None, and where
                nobody knows which one will answer.
        """
        servers = self.known.servers
        if alias not in servers.endpoints:
            return self.of_key(alias, alias)
        if life is not None and alias not in servers.led:
            return self.of_key(alias, servers.key(alias, life))
        known = [self.of_key(alias, key) for key in servers.keys(alias)]
        return max(known, key=lambda r: (r.state is ReplicaState.STREAMING, r.watermark))

    def server(self, alias: str, life: Life) -> Replica:
        """Return what is known now of the server behind an alias that has that life."""
        return self.of_key(alias, self.known.servers.key(alias, life))

    def of_key(self, alias: str, key: str | None) -> Replica:
        """Return what is known now of the server of a key, behind an alias."""
        now = self.known.clock()
        reading = self.known.reading(key)
        state = reading.state
        if state is ReplicaState.STREAMING and self.is_silent(alias, key or alias, now, reading):
            state = ReplicaState.SILENT
        return Replica(alias, state, reading.watermark, now - reading.fresh_at)

    def may_serve(self, alias: str, floor: Position, max_lag: float) -> bool:
        """Tell the same as ``policy.may_serve`` of what is known now of the one server behind an alias.

        In one step, since each first decision asks it.
        """
        known = self.known
        now, reading = known.clock(), known.readings.get(alias, UNREAD)
        return (
            reading.state is _STREAMING
            and reading.watermark >= floor.lsn
            and now - reading.fresh_at <= max_lag
            and not self.is_silent(alias, alias, now, reading)
        )

    def primary_condition(self) -> str:
        """Return how the primary is: "PRIMARY" where it answers, "DOWN", or "UNKNOWN".

        It is not known before the first look, and where no look has ended for a while.
        """
        if self.known.primary_is_down:
            return DOWN
        is_known = self.known.clock() - self.known.history.sampled_at <= self.silence
        return PRIMARY if is_known else UNKNOWN

    def is_silent(self, alias: str, key: str, now: float, reading: Reading) -> bool:
        """Tell whether the server of a key, behind an alias, does not answer: not since that reading."""
        if now - reading.read_at > self.silence:
            return True
        looks = self.known.looks.get(key) or self.known.looks.get(alias)
        # Between two looks, as a rule, without asking how long the present one takes.
        return looks is not None and looks.busy_since is not None and looks.is_waiting

    def is_overdue(self, alias: str, life: Life) -> bool:
        """Tell whether a server has not told all of itself for a while."""
        key = self.known.servers.key(alias, life)
        return self.known.clock() - self.known.reading(key).read_at > self.known.interval
