"""A PostgreSQL replica that can be delayed, paused, cut off, promoted and led elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from signal import SIGTERM

import psycopg

from testproject.cluster.binaries import PostgresBinaries
from testproject.cluster.errors import ClusterError
from testproject.cluster.postgres import (
    STATE_TIMEOUT,
    USER,
    PostgresServer,
    Row,
    fetch_rows,
    record_end,
)
from testproject.cluster.processes import send_signal
from testproject.cluster.server import wait_until
from testproject.cluster.workspace import Workspace, last_lines

HELD_BACK = "SELECT pg_is_wal_replay_paused() OR current_setting('recovery_min_apply_delay') <> '0'"
RECEIVED_FROM = "SELECT status, sender_port FROM pg_stat_wal_receiver"


class ReplicaServer(PostgresServer):
    """A hot standby, made with pg_basebackup."""

    def __init__(
        self,
        workspace: Workspace,
        binaries: PostgresBinaries,
        name: str,
        upstream: PostgresServer,
    ) -> None:
        super().__init__(workspace, binaries, name)
        self.upstream = upstream

    def copy_upstream(self) -> None:
        """Fill the data directory with a copy of the upstream's."""
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

    def rebuild(self, upstream: PostgresServer) -> None:
        """Throw the data away and start again from a copy of a primary; the port stays."""
        self.kill()
        for path in self.data_directory.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.upstream = upstream
        self.copy_upstream()
        self.start()

    def _upstream_conninfo(self) -> str:
        upstream = self.upstream
        return (
            f"host={upstream.host} port={upstream.port} user={USER} sslmode=disable "
            f"application_name={self.name}"
        )

    def set_delay(self, seconds: float) -> None:
        """Replay every commit this long after the primary has made it; 0 turns that off."""
        self.configure(recovery_min_apply_delay=f"{round(seconds * 1000)}ms")

    def pause(self) -> None:
        """Stop replaying, go on receiving."""
        with self.kept_connection() as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            [(delay,)] = fetch_rows(connection, "SHOW recovery_min_apply_delay")
            # A replica that waits out its delay looks at the request only afterwards, yet before
            # it replays. So ending the wait makes it pause and lets nothing through.
            if delay != "0":
                self.configure(recovery_min_apply_delay=0)
            wait_until(
                lambda: (
                    fetch_rows(connection, "SELECT pg_get_wal_replay_pause_state()")
                    == [("paused",)]
                ),
                timeout=STATE_TIMEOUT,
                failure=lambda: f"{self.name} does not pause. {last_lines(self.log_path)}",
            )
            if delay != "0":
                self.configure(recovery_min_apply_delay=delay)

    def resume(self) -> None:
        """Replay again after ``pause()``."""
        self._value("SELECT pg_wal_replay_resume()")

    def cut(self) -> None:
        """Stop receiving, go on replaying what is there."""
        self.configure(primary_conninfo="")
        with self.connect() as connection:

            def has_stopped() -> bool:
                receivers = fetch_rows(connection, "SELECT pid FROM pg_stat_wal_receiver")
                # A replica that is paused or delayed would do it only when it replays again.
                for (pid,) in receivers:
                    send_signal(pid, SIGTERM)
                return not receivers

            wait_until(
                has_stopped,
                timeout=STATE_TIMEOUT,
                failure=lambda: f"{self.name} goes on receiving. {last_lines(self.log_path)}",
            )

    def reconnect(self) -> None:
        """Receive from the upstream again, and return when it does so.

        It is not waited for if the upstream is down, nor on a paused or delayed replica, which may
        begin to receive only when it replays again.
        """
        self.configure(primary_conninfo=self._upstream_conninfo())
        if not self.upstream.is_running:
            return
        with self.connect() as connection:
            if fetch_rows(connection, HELD_BACK) == [(True,)]:
                return
            wait_until(
                lambda: self._receives(connection),
                timeout=STATE_TIMEOUT,
                failure=lambda: (
                    f"{self.name} receives nothing from {self.upstream.name}. "
                    f"{last_lines(self.log_path)}"
                ),
            )

    def is_receiving(self) -> bool:
        """Return whether the replica receives from its upstream now."""
        with self.connect() as connection:
            return self._receives(connection)

    def _receives(self, connection: psycopg.Connection[Row]) -> bool:
        return fetch_rows(connection, RECEIVED_FROM) == [("streaming", self.upstream.port)]

    def follow(self, primary: PostgresServer) -> None:
        """Receive from another primary, also over the change of timeline that a promotion makes."""
        self.upstream = primary
        self.configure(recovery_target_timeline="latest")
        self.reconnect()

    def promote(self) -> None:
        """Make the replica a primary, and return when it is one."""
        seconds = math.ceil(STATE_TIMEOUT)
        if not self._value(f"SELECT pg_promote(wait => true, wait_seconds => {seconds})"):
            raise ClusterError(
                f"{self.name} was not promoted within {seconds} s. {last_lines(self.log_path)}"
            )

    def replay_lsn(self) -> int:
        """Return the position up to which the replica has replayed."""
        return int(self._value("SELECT pg_last_wal_replay_lsn() - '0/0'"))

    def wait_replayed(self, lsn: int, timeout: float = 10.0) -> None:
        """Return when the replica has replayed up to an LSN."""
        deadline = time.monotonic() + timeout
        target = record_end(lsn)
        replayed = 0

        def has_replayed() -> bool:
            nonlocal replayed
            [(position,)] = fetch_rows(connection, "SELECT pg_last_wal_replay_lsn() - '0/0'")
            replayed = int(position)
            return replayed >= target

        try:
            with self.connect(connect_timeout=max(1.0, timeout)) as connection:
                wait_until(
                    has_replayed,
                    timeout=max(0.0, deadline - time.monotonic()),
                    failure=lambda: (
                        f"{self.name} has replayed up to {_text(replayed)}, "
                        f"not up to {_text(target)}."
                    ),
                )
        except psycopg.OperationalError as error:
            raise ClusterError(f"{self.name} does not say what it has replayed: {error}") from error

    def heal(self, primary: PostgresServer) -> None:
        """Undo what was done to a running replica: delay, pause, cut, promotion, following."""
        # Once promoted, or fed by a promoted one, it has a history that the primary does not have.
        if not self.is_standby or self.upstream is not primary:
            self.rebuild(primary)
            return
        [(delay, is_paused, conninfo)] = self.execute(
            "SELECT current_setting('recovery_min_apply_delay'), pg_is_wal_replay_paused(), "
            "current_setting('primary_conninfo')"
        )
        if is_paused:
            self.resume()
        if delay != "0":
            self.set_delay(0)
        if not conninfo:
            self.reconnect()


def _text(lsn: int) -> str:
    """Return an LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFF_FFFF:X}"
