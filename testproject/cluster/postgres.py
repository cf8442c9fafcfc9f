"""A PostgreSQL server: data directory, process, settings, queries."""

from __future__ import annotations

import ctypes
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from signal import SIGINT, SIGQUIT, SIGTERM
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

Row = tuple[Any, ...]

# They stand in postgresql.conf of the primary, and by base backup in that of every replica.
DEFAULT_SETTINGS = {
    "wal_level": "replica",
    "hot_standby": "on",
    "hot_standby_feedback": "off",
    "max_wal_senders": "20",
    # A replica that was cut off finds what it has missed. Not by slots: the slot of a replica that
    # never comes back keeps the WAL for ever.
    "wal_keep_size": "512MB",
    # A replica tries again after 0.1 s, not 5 s, and reports every second, not every 10 s.
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    # A server that is killed loses nothing by this; only a machine that loses power would.
    "fsync": "off",
    # New WAL files take no room before they are written, old ones none after.
    "wal_init_zero": "off",
    "wal_recycle": "off",
    # In the data directory, where it goes away with the rest even after SIGKILL.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] ",
}

# Any user of this machine may connect, and nobody from elsewhere.
HOST_BASED_AUTHENTICATION = """\
host all         all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""

STOP_SIGNALS = {"smart": SIGTERM, "fast": SIGINT, "immediate": SIGQUIT}

# Lines of postmaster.pid, as in PostgreSQL's pidfile.h but counted from 0.
LOCK_FILE_PID = 0
LOCK_FILE_SHARED_MEMORY = 6
LOCK_FILE_STATUS = 7

# Commits go by what the checkpointer has told all processes of it, see UpdateSharedMemoryConfig in
# PostgreSQL's checkpointer.c, and no other process can see whether it has.
FOR_ALL_BY_CHECKPOINTER = {"synchronous_standby_names"}

WAL_PAGE_SIZE = 8192
WAL_SEGMENT_SIZE = 16 * 1024 * 1024
WAL_PAGE_HEADER_SIZE = 24
WAL_SEGMENT_HEADER_SIZE = 40


def record_end(lsn: int) -> int:
    """Return where the last WAL record before an insert LSN ends.

    An insert LSN may stand behind a page header after which there is no record yet, where a
    replica arrives only with the next record.
    """
    if lsn % WAL_SEGMENT_SIZE == WAL_SEGMENT_HEADER_SIZE:
        return lsn - WAL_SEGMENT_HEADER_SIZE
    if lsn % WAL_PAGE_SIZE == WAL_PAGE_HEADER_SIZE:
        return lsn - WAL_PAGE_HEADER_SIZE
    return lsn


KEPT = "kept by the cluster"
"""What a connection is named that stays open for the questions of the cluster itself."""


class PostgresServer(Server):
    """A PostgreSQL server with a data directory of its own."""

    user = USER
    end_signal = STOP_SIGNALS["immediate"]

    def __init__(self, workspace: Workspace, binaries: PostgresBinaries, name: str) -> None:
        super().__init__(workspace, name)
        self._binaries = binaries
        self._version: int | None = None
        self._kept: psycopg.Connection[Row] | None = None
        self._keeping = threading.RLock()

    def initialise(self, settings: Mapping[str, str]) -> None:
        """Fill the data directory as that of a primary."""
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
        (self.data_directory / "pg_hba.conf").write_text(HOST_BASED_AUTHENTICATION)
        with (self.data_directory / "postgresql.conf").open("a") as file:
            for name, value in {**DEFAULT_SETTINGS, **settings}.items():
                file.write("{} = '{}'\n".format(name, str(value).replace("'", "''")))

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._binaries.path(program), *arguments]
        self._workspace.run(command, directory=self.data_directory, log_path=self.log_path)

    def _command(self) -> list[str]:
        command = [self._binaries.path("postgres"), "-D", str(self.data_directory)]
        # Not in the files, as those of a replica are copies of the primary's.
        options = {
            "port": str(self.port),
            "listen_addresses": self.host,
            "unix_socket_directories": "",
        }
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _lock_file_line(self, number: int) -> str:
        try:
            return (self.data_directory / "postmaster.pid").read_text().splitlines()[number].strip()
        except (FileNotFoundError, IndexError):
            return ""

    def _is_ready(self, pid: int) -> bool:
        # As pg_ctl does. The process id tells the file from one that a killed server has left.
        is_own = self._lock_file_line(LOCK_FILE_PID) == str(pid)
        return is_own and self._lock_file_line(LOCK_FILE_STATUS) == "ready"

    def ask_to_end(self) -> None:
        """Make the server end at once, without care for its data, and do not wait for it."""
        self._close_kept()
        super().ask_to_end()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and return when it has ended; do nothing if it does not run."""
        self._close_kept()
        if mode not in STOP_SIGNALS:
            raise ClusterError(f"There is no mode {mode!r}. Use one of {', '.join(STOP_SIGNALS)}.")
        self._stop_by(STOP_SIGNALS[mode])

    def kill(self) -> None:
        """Kill all processes of the server, as a crash would, and return when they are gone."""
        self._close_kept()
        super().kill()
        # By this segment PostgreSQL would notice survivors of a crash. There are none, and it
        # would outlast the cluster.
        segment = self._lock_file_line(LOCK_FILE_SHARED_MEMORY)
        if segment:
            _remove_shared_memory(int(segment.split()[-1]))
            (self.data_directory / "postmaster.pid").unlink()

    def suspend(self) -> None:
        """Freeze the server: it keeps its port and its connections, and answers nothing."""
        self._close_kept()
        super().suspend()

    def restart(self, mode: str = "fast") -> None:
        """Stop the server and start it again."""
        self.stop(mode)
        self.start()

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the connection string of a database."""
        # TLS, which the caller's PGSSLMODE may demand, is something the server does not have.
        return f"host={self.host} port={self.port} user={USER} dbname={dbname} sslmode=disable"

    def connect(self, dbname: str = "postgres", **kwargs: Any) -> psycopg.Connection[Row]:
        """Open an autocommit connection."""
        # A suspended server takes connections and then says nothing.
        return psycopg.connect(
            self.dsn(dbname), **{"autocommit": True, "connect_timeout": CONNECT_TIMEOUT, **kwargs}
        )

    @contextmanager
    def kept_connection(self) -> Iterator[psycopg.Connection[Row]]:
        """Give an autocommit connection that stays open, for what is asked again and again.

        The server was not suspended since it was opened: that closes it.
        """
        with self._keeping:
            if self._kept is None or _is_broken(self._kept):
                self._close_kept()
                # Not waiting for replicas, whatever the server's setting: they may be cut off.
                options = "-c synchronous_commit=local"
                self._kept = self.connect(options=options, application_name=KEPT)
            yield self._kept

    def _close_kept(self) -> None:
        with self._keeping:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def execute(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        dbname: str = "postgres",
    ) -> list[Row]:
        """Run one statement on a connection of its own, and return the rows."""
        with self.connect(dbname) as connection:
            return fetch_rows(connection, query, params)

    def _value(self, query: str) -> Any:
        with self.kept_connection() as connection:
            return fetch_rows(connection, query)[0][0]

    @property
    def version(self) -> int:
        """Return the version as PostgreSQL numbers it: 180006 is 18.6."""
        if self._version is None:
            self._version = int(self._value("SHOW server_version_num"))
        return self._version

    @property
    def is_in_recovery(self) -> bool:
        """Return whether the server is a replica, as it says itself."""
        return bool(self._value("SELECT pg_is_in_recovery()"))

    @property
    def is_standby(self) -> bool:
        """Return whether the data directory is a replica's; this asks no server and never hangs."""
        return (self.data_directory / "standby.signal").exists()

    def insert_lsn(self) -> int:
        """Return where the last WAL record ends, written out or not."""
        return record_end(int(self._value("SELECT pg_current_wal_insert_lsn() - '0/0'")))

    def flush_lsn(self) -> int:
        """Return the position up to which the WAL is written out."""
        return int(self._value("SELECT pg_current_wal_flush_lsn() - '0/0'"))

    def flush(self) -> int:
        """Write out all WAL there is, and return an LSN behind it that replicas can reach."""
        with self.kept_connection() as connection:
            [(lsn,)] = fetch_rows(connection, "SELECT pg_current_wal_insert_lsn() - '0/0'")
            # Records of no transaction may stay in memory for seconds; a commit takes them along.
            connection.execute("SELECT pg_logical_emit_message(true, 'cluster', '')")
        return record_end(int(lsn))

    def configure(self, **settings: str | float | None) -> None:
        """Change settings, None meaning back to the default, and return when they are in force.

        A setting that PostgreSQL reads only at its start is in force after ``restart()``.
        """
        with self.connect() as connection:
            for name, value in settings.items():
                connection.execute(_alter_system(name, value))
            [(loaded_before,)] = fetch_rows(connection, "SELECT pg_conf_load_time()")
            connection.execute("SELECT pg_reload_conf()")
        # A new connection each time: the postmaster loads the files and tells its other processes
        # to do so before it makes another one.
        wait_until(
            lambda: self.execute("SELECT pg_conf_load_time() > %s", [loaded_before]) == [(True,)],
            timeout=STATE_TIMEOUT,
            failure=lambda: f"{self.name} loads no settings. {last_lines(self.log_path)}",
        )
        if FOR_ALL_BY_CHECKPOINTER & settings.keys():
            self.execute("CHECKPOINT")  # it looks at its settings first


def fetch_rows(
    connection: psycopg.Connection[Row],
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[Row]:
    """Run one statement, and return the rows if it has any to give."""
    cursor = connection.execute(query.encode(), params)
    return cursor.fetchall() if cursor.description else []


def _is_broken(connection: psycopg.Connection[Row]) -> bool:
    # A server says nothing of itself to a client at rest, but that it has ended.
    return connection.closed or bool(select.select([connection.fileno()], [], [], 0)[0])


def _alter_system(name: str, value: str | float | None) -> sql.Composed:
    setting = sql.Identifier(*name.split("."))
    if value is None:
        return sql.SQL("ALTER SYSTEM RESET {}").format(setting)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return sql.SQL("ALTER SYSTEM SET {} = {}").format(setting, sql.Literal(str(value)))


def _remove_shared_memory(segment: int) -> None:
    remove = 0  # IPC_RMID on Linux and macOS
    ctypes.CDLL(None).shmctl(segment, remove, None)
