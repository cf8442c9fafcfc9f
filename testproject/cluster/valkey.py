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
    """A server that keeps nothing on disk: after a restart it is empty."""

    def __init__(self, workspace: Workspace, program: Path, name: str = "cache") -> None:
        super().__init__(workspace, name)
        self._program = program

    @property
    def url(self) -> str:
        """Return the address in the form that django-redis and redis-py take."""
        return f"redis://{self.host}:{self.port}/0"

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": self.host,
            "protected-mode": "yes",
            "dir": str(self.data_directory),
            "save": "",
            "appendonly": "no",
        }
        return [
            str(self._program),
            *(part for name, value in options.items() for part in (f"--{name}", value)),
        ]

    def _is_ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.host, self.port), timeout=1.0) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def stop(self) -> None:
        """Stop the server and return when it is gone; do nothing if it does not run."""
        self._stop_by(signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start the server, which then is empty."""
        self.stop()
        self.start()

    def command(self, *args: str | bytes | float) -> Any:
        """Run one command, such as ``command("GET", "key")``, and return its result."""
        with redis.Redis(host=self.host, port=self.port, socket_timeout=10.0) as client:
            return client.execute_command(*args)

    def flush(self) -> None:
        """Delete every key."""
        self.command("FLUSHALL")
