"""A PgBouncer in front of one server."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from testproject.cluster.errors import ClusterError
from testproject.cluster.server import LOOPBACK, Server, wait_until
from testproject.cluster.workspace import Workspace, last_lines

USER = "postgres"
CONNECT_TIMEOUT = 10.0
RELOAD_TIMEOUT = 10.0
POOL_MODES = ("session", "transaction")

# What docs/poolers.md recommends. The time-outs let clients know of a dead server soon, and let
# PgBouncer find out soon that it is back; its defaults are 15 and 120 seconds.
DEFAULT_SETTINGS = {
    "auth_type": "trust",
    "max_client_conn": "1000",
    "default_pool_size": "20",
    "ignore_startup_parameters": "extra_float_digits",
    "server_login_retry": "1",
    "server_connect_timeout": "2",
    "query_wait_timeout": "5",
}


def answers(port: int, database: str, *, timeout: int) -> bool:
    """Tell whether a new connection to that port of loopback has an answer from the database.

    Args:
        port: of a server, or of a pooler, which takes a connection also where its server is gone.
        database: its name.
        timeout: seconds within which the connection must be accepted.
    """
    with (
        contextlib.suppress(psycopg.Error),
        psycopg.connect(
            host=LOOPBACK, port=port, user=USER, dbname=database, connect_timeout=timeout
        ) as connection,
    ):
        connection.execute("SELECT 1")
        return True
    return False


class PgBouncerServer(Server):
    """A pooler that leads to one server, for all databases of it.

    Args:
        workspace: where its files are.
        program: the path of PgBouncer.
        name: of its directory and log.
        target_port: the port on loopback that it leads to.
        target_hosts: addresses of loopback; of several each new connection takes the next one.
        pool_mode: when a connection to the server is given to the next client: after a
            "session" or after a "transaction".
        settings: more settings of PgBouncer, or others.
        pool_sizes: how many connections to servers there are at most for a database, where that is not
            the ``default_pool_size``.
    """

    def __init__(
        self,
        workspace: Workspace,
        program: Path,
        name: str,
        *,
        target_port: int,
        target_hosts: Sequence[str] = (LOOPBACK,),
        pool_mode: str,
        settings: Mapping[str, str] | None = None,
        pool_sizes: Mapping[str, int] | None = None,
    ) -> None:
        if pool_mode not in POOL_MODES:
            raise ClusterError(
                f"There is no pool mode {pool_mode!r} here. Use one of {', '.join(POOL_MODES)}."
            )
        super().__init__(workspace, name)
        self.pool_mode = pool_mode
        self.target_port = target_port
        self._target_hosts = ",".join(target_hosts)
        self._program = program
        self._settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._pool_sizes = dict(pool_sizes or {})
        self._configuration = self.data_directory / "pgbouncer.ini"
        self._users = self.data_directory / "users.txt"
        self._pid_file = self.data_directory / "pgbouncer.pid"
        self._users.write_text(f'"{USER}" ""\n')

    def _command(self) -> list[str]:
        self._write_configuration()
        return [str(self._program), str(self._configuration)]

    def _write_configuration(self) -> None:
        settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "pidfile": str(self._pid_file),
            "auth_file": str(self._users),
            "admin_users": USER,
            "pool_mode": self.pool_mode,
            **self._settings,
        }
        target = f"host={self._target_hosts} port={self.target_port}"
        lines = [
            "[databases]",
            *(f"{name} = {target} pool_size={size}" for name, size in self._pool_sizes.items()),
            # Any database of the one server, as the monitor's is another one under test.
            f"* = {target}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        self._configuration.write_text("\n".join([*lines, ""]))

    def _is_ready(self, pid: int) -> bool:
        # The process id tells the file from one that a killed pooler has left. It is written once
        # the port is open.
        with contextlib.suppress(OSError, ValueError):
            if int(self._pid_file.read_text()) == pid:
                socket.create_connection((self.host, self.port), 1.0).close()
                return True
        return False

    def stop(self) -> None:
        """Stop the pooler, ending all its connections; do nothing if it does not run."""
        self._stop_by(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the pooler and start it again."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop the pooler and remove its files."""
        self.stop()
        shutil.rmtree(self.data_directory)

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Run a command of PgBouncer's console, such as ``SHOW POOLS``, and return its rows."""
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user=USER,
            dbname="pgbouncer",
            autocommit=True,
            connect_timeout=round(CONNECT_TIMEOUT),
            cursor_factory=psycopg.ClientCursor,  # the console knows the simple protocol only
        ) as connection:
            cursor = connection.execute(command.encode())
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @contextmanager
    def adjusted(self, **settings: str) -> Iterator[None]:
        """Run with other settings for the length of the block."""
        try:
            for name, value in settings.items():
                self.ask(f"SET {name} = {value}")
            yield
        finally:
            for name in settings:
                self.ask(f"SET {name} = {self._settings[name]}")

    def heal(self, databases: Iterable[str]) -> None:
        """Return to the settings of the start, and when these databases are reached again.

        Of itself the pooler would try a server that was down again only ``server_login_retry``
        seconds after a failure.
        """
        self.ask("RELOAD")
        with self.adjusted(server_login_retry="0"):
            for database in databases:
                wait_until(
                    lambda database=database: answers(  # type: ignore[misc]
                        self.port, database, timeout=round(CONNECT_TIMEOUT)
                    ),
                    timeout=RELOAD_TIMEOUT,
                    failure=lambda: (
                        f"{self.name} does not reach its server. {last_lines(self.log_path)}"
                    ),
                )

    def lead(self, port: int) -> None:
        """Lead to another server from now on; no client is disconnected, as in a failover."""
        if port == self.target_port:
            return
        self.target_port = port
        self._write_configuration()
        if not self.is_running:
            return
        self.ask("RELOAD")
        # Connections to the old server end when they are given back; to those at rest it is told
        # at once.
        self.ask("RECONNECT")
        wait_until(
            lambda: all(
                int(row["port"]) == port
                for row in self.ask("SHOW SERVERS")
                if row["state"] != "active"
            ),
            timeout=RELOAD_TIMEOUT,
            failure=lambda: f"{self.name} goes on leading elsewhere.",
        )
