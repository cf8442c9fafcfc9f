"""What the buttons of the window do to the servers, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import psycopg

from testproject.cluster import Cluster, ClusterError, PostgresServer, ReplicaServer
from testproject.window.errors import RefusedError, UnknownError

DELAYS_MS = (0, 100, 1000, 5000)
LAST_WAIT_SECONDS = 60.0

ACTIONS: dict[str, Callable[[PostgresServer], None]] = {
    "kill": PostgresServer.kill,
    "start": PostgresServer.start,
    "restart": PostgresServer.restart,
}
REPLICA_ACTIONS: dict[str, Callable[[ReplicaServer], None]] = {
    "pause": ReplicaServer.pause,
    "resume": ReplicaServer.resume,
    "cut": ReplicaServer.cut,
    "reconnect": ReplicaServer.reconnect,
    "promote": ReplicaServer.promote,
}

DOING = {
    "kill": "being killed",
    "start": "starting",
    "restart": "restarting",
    "pause": "pausing",
    "resume": "resuming",
    "cut": "being cut off",
    "reconnect": "reconnecting",
    "promote": "being promoted",
    "rebuild": "being copied anew",
    "delay": "changing its delay",
}

DONE = {
    "kill": "{name} was killed, as by a crash.",
    "start": "{name} runs again.",
    "restart": "{name} was restarted.",
    "pause": "{name} has stopped replaying. It still answers, with data that gets older.",
    "resume": "{name} replays again.",
    "cut": "{name} receives nothing from the primary. It still answers, with data that gets older.",
    "reconnect": "{name} receives from the primary again.",
    "promote": "{name} is a primary of its own now. Nothing that the sites write reaches it.",
    "rebuild": "{name} is a fresh copy of the primary.",
}


class Controls:
    """Moves the servers of a cluster.

    Args:
        cluster: the servers.
        delay_ms: how late replicas are where nobody has said otherwise.
    """

    def __init__(self, cluster: Cluster, delay_ms: int) -> None:
        self._cluster = cluster
        self._delay_ms = delay_ms
        self._moving = Lock()
        self._doing: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return the names of the servers, the primary's first."""
        return [server.name for server in self._servers()]

    def doing(self) -> dict[str, str]:
        """Return what is being done to which server now."""
        return dict(self._doing)

    def move(self, name: str, action: str, *, delay_ms: int | None = None) -> str:
        """Do something to a server, and return a sentence that tells what has changed.

        Args:
            name: of the server, or "replicas" for the delay of all.
            action: a key of ``DOING``.
            delay_ms: for the action "delay".

        Raises:
            UnknownError: there is no such server, or nothing like this can be done to it.
            RefusedError: it cannot be done now.
        """
        if action == "delay":
            return self._delay(name, delay_ms)
        server = self._find(name)
        if action not in ACTIONS and not isinstance(server, ReplicaServer):
            raise UnknownError(f"There is no action {action!r} for {name}.")
        if action not in DOING:
            raise UnknownError(f"There is no action {action!r}.")
        self._require_sense(server, action)
        with self._alone({name: DOING[action]}):
            self._act(server, action)
        return DONE[action].format(name=name)

    def reset(self) -> str:
        """Bring all servers back to how they were at the start."""
        with self._alone(dict.fromkeys(self.names(), "being reset")):
            self._cluster.heal()
            for replica in self._cluster.replicas:
                replica.set_delay(self._delay_ms / 1000)
        return f"All servers are as they were at the start. Replicas replay {self._delay_ms / 1000:g} s late."

    def close(self) -> None:
        """Let what is being done come to its end, and do nothing any more."""
        self._moving.acquire(timeout=LAST_WAIT_SECONDS)

    def _servers(self) -> list[PostgresServer]:
        return [self._cluster.primary, *self._cluster.replicas]

    def _find(self, name: str) -> PostgresServer:
        for server in self._servers():
            if server.name == name:
                return server
        raise UnknownError(f"There is no server {name!r}.")

    def _delay(self, name: str, delay_ms: int | None) -> str:
        if delay_ms not in DELAYS_MS:
            raise UnknownError(f"A delay is one of {', '.join(map(str, DELAYS_MS))} ms.")
        targets = self._cluster.replicas if name == "replicas" else [self._find(name)]
        replicas = [
            server
            for server in targets
            if isinstance(server, ReplicaServer) and server.is_running and server.is_standby
        ]
        if not replicas:
            raise RefusedError("No running replica is there to be delayed. Start one first.")
        with self._alone({replica.name: DOING["delay"] for replica in replicas}):
            for replica in replicas:
                replica.set_delay(delay_ms / 1000)
        names = " and ".join(replica.name for replica in replicas)
        return f"Every commit is replayed {delay_ms / 1000:g} s late on {names}."

    def _require_sense(self, server: PostgresServer, action: str) -> None:
        name = server.name
        if action == "start":
            if server.is_running:
                raise RefusedError(f"{name} runs already.")
        elif not server.is_running and action != "rebuild":
            raise RefusedError(f"{name} is down. Start it first.")
        if action in REPLICA_ACTIONS and not server.is_standby:
            raise RefusedError(f"{name} was promoted. Make it a replica again first.")
        if action == "rebuild" and not self._cluster.primary.is_running:
            raise RefusedError("The primary is down, so it cannot be copied. Start it first.")

    def _act(self, server: PostgresServer, action: str) -> None:
        if action in ACTIONS:
            ACTIONS[action](server)
        elif isinstance(server, ReplicaServer):
            if action == "rebuild":
                server.rebuild(self._cluster.primary)
                server.set_delay(self._delay_ms / 1000)
            elif action in REPLICA_ACTIONS:
                REPLICA_ACTIONS[action](server)

    @contextmanager
    def _alone(self, doing: dict[str, str]) -> Iterator[None]:
        """Let nobody else move a server meanwhile, and tell a failure in the visitor's words."""
        if not self._moving.acquire(blocking=False):
            raise RefusedError("A server is being moved already. Try again in a moment.")
        try:
            self._doing = doing
            yield
        except (ClusterError, psycopg.Error) as error:
            raise RefusedError(f"That did not work: {str(error).splitlines()[0]}") from error
        finally:
            self._doing = {}
            self._moving.release()
