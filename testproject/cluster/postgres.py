"""PostgreSQL servers: a primary, and replicas that can be delayed, paused, cut off and promoted."""

from __future__ import annotations

import contextlib
import ctypes
import math
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from testproject.cluster.binaries import PostgresBinaries
from testproject.cluster.errors import ClusterError
from testproject.cluster.server import Server, wait_until
from testproject.cluster.workspace import Workspace, last_lines

USER = "postgres"
CONNECT_TIMEOUT = 10.0
STATE_TIMEOUT = 10.0

# In postgresql.conf of the primary, and from there by base backup in that of every replica.
DEFAULT_SETTINGS = {
    "wal_level": "replica",
    "hot_standby": "on",
    "hot_standby_feedback": "off",
    "max_wal_senders": "20",
    # A replica that was cut off finds what it missed. No slots: one forgotten keeps WAL for ever.
    "wal_keep_size": "1GB",
    # A replica comes back at once instead of after 5 s, and reports its position each second instead of every 10 s.
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    # A crash of a process loses nothing by this, only one of the machine would.
    "fsync": "off",
    # In files of the data directory, where they go away with it even after SIGKILL; /dev/shm would fill up.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] ",
}

# Anyone on this machine may connect, nobody from elsewhere can.
HBA = """\
host all         all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""

WAL_PAGE_SIZE = 8192
WAL_SEGMENT_SIZE = 16 * 1024 * 1024
SHORT_PAGE_HEADER = 24
LONG_PAGE_HEADER = 40


def record_end(lsn: int) -> int:
    """Return where the last record at or before an insert LSN ends.

    The insert LSN may stand behind a page header after which there is no record yet; a replica would reach it only with
    the next record.
    """
    if lsn % WAL_SEGMENT_SIZE == LONG_PAGE_HEADER:
        return lsn - LONG_PAGE_HEADER
    if lsn % WAL_PAGE_SIZE == SHORT_PAGE_HEADER:
        return lsn - SHORT_PAGE_HEADER
    return lsn


class PostgresServer(Server):
    """A PostgreSQL server with its own data directory."""

    user = USER

    def __init__(self, workspace: Workspace, binaries: PostgresBinaries, name: str) -> None:
        super().__init__(workspace, name)
        self._binaries = binaries
        self._version: int | None = None

    def initialise(self, settings: Mapping[str, str]) -> None:
        """Create the data directory of a primary."""
        self._run(
            "initdb",
            f"--pgdata={self.data_directory}",
            f"--username={USER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
        )
        (self.data_directory / "pg_hba.conf").write_text(HBA)
        lines = [
            f"{name} = '{_quoted(value)}'\n"
            for name, value in {**DEFAULT_SETTINGS, **settings}.items()
        ]
        with (self.data_directory / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._binaries.path(program), *arguments]
        self._workspace.run(command, directory=self.data_directory, log_path=self.log_path)

    def _command(self) -> list[str]:
        # On the command line, because the files of a replica are copies of the primary's, and because ALTER SYSTEM
        # must not change them.
        return [
            self._binaries.path("postgres"),
            "-D",
            str(self.data_directory),
            "-c",
            f"port={self.port}",
            "-c",
            f"listen_addresses={self.host}",
            "-c",
            "unix_socket_directories=",
        ]

    def _lock_file_lines(self) -> list[str]:
        try:
            return (self.data_directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _is_ready(self) -> bool:
        # What pg_ctl looks at. The process id tells this start's file from one that a killed server has left.
        lines = self._lock_file_lines()
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and return when it is gone; do nothing if it does not run."""
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        if mode not in signals:
            raise ClusterError(
                f"The mode {mode!r} does not exist. Use one of {', '.join(signals)}."
            )
        self._stop_by(signals[mode])

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would, and return when all its processes are gone."""
        lines = self._lock_file_lines()
        super().kill()
        # The segment by which PostgreSQL notices survivors of a crash. There are none, and it would outlast the cluster.
        if len(lines) >= 7:
            with contextlib.suppress(ValueError):
                _remove_shared_memory(int(lines[6].split()[-1]))
        (self.data_directory / "postmaster.pid").unlink(missing_ok=True)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start the server."""
        self.stop(mode)
        self.start()

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the connection string of a database."""
        # Without the attempt at TLS, which the caller's environment may ask for and the server cannot give.
        return f"host={self.host} port={self.port} user={USER} dbname={dbname} sslmode=disable"

    def connect(
        self, dbname: str = "postgres", **kwargs: Any
    ) -> psycopg.Connection[tuple[Any, ...]]:
        """Open an autocommit connection."""
        kwargs.setdefault("autocommit", True)
        # A suspended server takes connections and does not answer.
        kwargs.setdefault("connect_timeout", CONNECT_TIMEOUT)
        return psycopg.connect(self.dsn(dbname), **kwargs)

    def execute(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        dbname: str = "postgres",
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return the rows."""
        with self.connect(dbname) as connection:
            return _rows(connection, query, params)

    def _scalar(self, query: str) -> Any:
        return self.execute(query)[0][0]

    @property
    def version(self) -> int:
        """Return the server's version as PostgreSQL numbers it: 180006 is 18.6."""
        if self._version is None:
            with self.connect() as connection:
                self._version = connection.info.server_version
        return self._version

    @property
    def is_in_recovery(self) -> bool:
        """Return whether the server is a replica at present."""
        return bool(self._scalar("SELECT pg_is_in_recovery()"))

    def insert_lsn(self) -> int:
        """Return the position behind the last WAL record made, written out or not."""
        return int(self._scalar("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def flush_lsn(self) -> int:
        """Return the position up to which the WAL is written out."""
        return int(self._scalar("SELECT pg_current_wal_flush_lsn() - '0/0'"))

    def configure(self, **settings: str | float | None) -> None:
        """Change settings and return when the server has loaded them; None brings back a setting's default.

        A setting that PostgreSQL reads only at its start is written, and is in force after ``restart()``.
        """
        with self.connect() as connection:
            for name, value in settings.items():
                connection.execute(_alter_system(name, value))
            [(loaded_before,)] = _rows(connection, "SELECT pg_conf_load_time()")
            connection.execute("SELECT pg_reload_conf()")
        # A connection each time: a new backend comes from the postmaster, which loads the files and tells its other
        # children before it makes another one.
        wait_until(
            lambda: self.execute("SELECT pg_conf_load_time() > %s", [loaded_before]) == [(True,)],
            timeout=STATE_TIMEOUT,
            failure=lambda: (
                f"{self.name} does not load its new settings. {last_lines(self.log_path)}"
            ),
        )

    def flush(self) -> int:
        """Write out all WAL and return an LSN that contains it and that replicas can reach."""
        with self.connect() as connection:
            # Not the replicas' confirmation, which may never come.
            connection.execute("SET synchronous_commit = local")
            [(lsn,)] = _rows(connection, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
            # Records without a commit behind them may stay in memory for seconds; a commit takes them along.
            connection.execute("SELECT pg_logical_emit_message(true, 'cluster', '')")
        return record_end(int(lsn))


class ReplicaServer(PostgresServer):
    """A hot standby made with pg_basebackup."""

    def __init__(
        self, workspace: Workspace, binaries: PostgresBinaries, name: str, upstream: PostgresServer
    ) -> None:
        super().__init__(workspace, binaries, name)
        self.upstream = upstream

    def initialise_from_upstream(self) -> None:
        """Create the data directory as a copy of the upstream's."""
        self._run(
            "pg_basebackup",
            f"--dbname={self._upstream_conninfo()}",
            f"--pgdata={self.data_directory}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--no-sync",
            "--no-manifest",
        )

    def _upstream_conninfo(self) -> str:
        upstream = self.upstream
        return f"host={upstream.host} port={upstream.port} user={USER} sslmode=disable application_name={self.name}"

    def set_delay(self, seconds: float) -> None:
        """Replay every commit this long after the primary made it; 0 turns that off."""
        self.configure(recovery_min_apply_delay=f"{round(seconds * 1000)}ms")

    def pause(self) -> None:
        """Stop replaying, go on receiving."""
        with self.connect() as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            [(delay,)] = _rows(connection, "SELECT current_setting('recovery_min_apply_delay')")
            # A replica that waits out its delay looks at the request only afterwards. It looks before it replays, so
            # ending the wait lets nothing through.
            if delay != "0":
                self.configure(recovery_min_apply_delay=0)
            wait_until(
                lambda: (
                    _rows(connection, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)]
                ),
                timeout=STATE_TIMEOUT,
                failure=lambda: f"{self.name} does not pause. {last_lines(self.log_path)}",
            )
            if delay != "0":
                self.configure(recovery_min_apply_delay=delay)

    def resume(self) -> None:
        """Replay again after ``pause()``."""
        self.execute("SELECT pg_wal_replay_resume()")

    def cut(self) -> None:
        """Stop receiving, go on replaying what is there."""
        self.configure(primary_conninfo="")
        with self.connect() as connection:
            wait_until(
                lambda: not _rows(connection, "SELECT pid FROM pg_stat_wal_receiver"),
                timeout=STATE_TIMEOUT,
                failure=lambda: f"{self.name} does not stop receiving. {last_lines(self.log_path)}",
            )

    def reconnect(self) -> None:
        """Receive from the upstream again; if that runs, return when it does."""
        self.configure(primary_conninfo=self._upstream_conninfo())
        if self.upstream.is_running:
            self.wait_streaming()

    def wait_streaming(self, timeout: float = STATE_TIMEOUT) -> None:
        """Return when the replica receives WAL."""
        with self.connect() as connection:
            wait_until(
                lambda: _rows(
                    connection, "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'"
                ),
                timeout=timeout,
                failure=lambda: f"{self.name} does not receive WAL. {last_lines(self.log_path)}",
            )

    def follow(self, primary: PostgresServer) -> None:
        """Receive from another primary, also on the new timeline that a promotion has begun."""
        self.upstream = primary
        self.configure(recovery_target_timeline="latest")
        self.reconnect()

    @property
    def has_standby_signal(self) -> bool:
        """Return whether the data directory is that of a replica; asks no server, so it never hangs."""
        return (self.data_directory / "standby.signal").exists()

    def promote(self) -> None:
        """Make the replica a primary and return when it is one."""
        if not self._scalar(
            f"SELECT pg_promote(wait => true, wait_seconds => {math.ceil(STATE_TIMEOUT)})"
        ):
            raise ClusterError(
                f"{self.name} was not promoted in {STATE_TIMEOUT:g} s. {last_lines(self.log_path)}"
            )

    def replay_lsn(self) -> int:
        """Return the position up to which the replica has replayed."""
        return int(self._scalar("SELECT pg_last_wal_replay_lsn() - '0/0'"))

    def wait_replayed(self, lsn: int, timeout: float = 10.0) -> None:
        """Return when the replica has replayed up to an LSN, and raise ClusterError if it does not in time."""
        deadline = time.monotonic() + timeout
        target = record_end(lsn)
        query = "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint"
        replayed: list[int] = []

        def has_replayed() -> bool:
            replayed[:] = [row[0] for row in _rows(connection, query)]
            return replayed[0] >= target

        try:
            with self.connect(connect_timeout=max(1.0, timeout)) as connection:
                wait_until(
                    has_replayed,
                    timeout=deadline - time.monotonic(),
                    failure=lambda: (
                        f"{self.name} has replayed up to {_text(replayed[0])}, not up to {_text(target)}."
                    ),
                )
        except psycopg.OperationalError as error:
            raise ClusterError(
                f"{self.name} does not say how far it has replayed: {error}"
            ) from error


def _rows(
    connection: psycopg.Connection[tuple[Any, ...]],
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    cursor = connection.execute(query.encode(), params)
    return cursor.fetchall() if cursor.description else []


def _alter_system(name: str, value: str | float | None) -> sql.Composed:
    setting = sql.Identifier(*name.split("."))
    if value is None:
        return sql.SQL("ALTER SYSTEM RESET {}").format(setting)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return sql.SQL("ALTER SYSTEM SET {} = {}").format(setting, sql.Literal(str(value)))


def _quoted(value: str) -> str:
    return str(value).replace("'", "''")


def _text(lsn: int) -> str:
    """Return an LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _remove_shared_memory(segment: int) -> None:
    remove = 0  # IPC_RMID, on Linux and macOS
    ctypes.CDLL(None).shmctl(segment, remove, None)
