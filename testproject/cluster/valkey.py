"""A Valkey or Redis server."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import redis

from testproject.cluster.server import Server
from testproject.cluster.workspace import Workspace


class ValkeyServer(Server):
    """A server that keeps nothing on disk: started again, it is empty.

    More settings may be put into ``settings``; they hold from its next start.
    """

    def __init__(self, workspace: Workspace, program: Path, name: str = "cache") -> None:
        super().__init__(workspace, name)
        self._program = program
        self.settings: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Return the address in the form that django-redis and redis-py take."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the address of one of its databases, as of a queue that is not to be emptied with the cache."""
        return f"redis://{self.host}:{self.port}/{database}"

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": self.host,
            "dir": str(self.data_directory),
            "save": "",
            "appendonly": "no",
            **self.settings,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [str(self._program), *arguments]

    def _is_ready(self, pid: int) -> bool:
        address = (self.host, self.port)
        with contextlib.suppress(OSError), socket.create_connection(address, 1.0) as connection:
            connection.sendall(b"INFO server\r\n")
            # Not only an answer: it could be that of another server, which has taken the port.
            return b"process_id:%d\r\n" % pid in connection.recv(16_384)
        return False

    def stop(self) -> None:
        """Stop the server and return when it has ended; do nothing if it does not run."""
        self._stop_by(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the server and start it again, empty."""
        self.stop()
        self.start()

    def command(self, *args: str | bytes | float) -> Any:
        """Run one command, such as ``command("GET", "key")``, and return its result."""
        with redis.Redis(host=self.host, port=self.port, socket_timeout=10.0) as client:
            return client.execute_command(*args)

    def flush(self) -> None:
        """Delete every key."""
        self.command("FLUSHALL")
