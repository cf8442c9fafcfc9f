"""What PostgreSQL and Valkey servers have in common: a process on a loopback port."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from signal import SIGTERM, Signals

from testproject.cluster.errors import ClusterError
from testproject.cluster.processes import (
    continue_family,
    is_gone,
    kill_family,
    suspend_family,
    wait_for,
)
from testproject.cluster.workspace import Workspace, last_lines

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
END_TIMEOUT = 5.0
PORT_RETRY_INTERVAL = 0.05

_ports_given: set[int] = set()


def free_port() -> int:
    """Return a loopback port on which nobody listens now.

    1. Not port 0: the kernel would choose among the ports that it also gives to outgoing
       connections, and one of those could take the port of a server that is down for a moment.
    2. Not the ``random`` module: test runners seed it, and parallel runs would choose alike.
    3. No port twice, be it in one process or in several that run side by side: it may belong to
       a server that is down for a moment, or has not come up yet.
    """
    while True:
        port = _any_port()
        if port not in _ports_given and _reserve(port) and _is_free(port):
            _ports_given.add(port)
            return port


def _any_port() -> int:
    return 10_240 + secrets.randbelow(32_768 - 10_240)


def _reserve(port: int) -> bool:
    """Keep other processes of this user from being given the port while this one lives.

    By a lock on one byte of a file that they share: the kernel releases it however a process ends.
    """
    file = _shared_file()
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of them it is
        return False
    return True


@cache
def _shared_file() -> int:
    path = Path(tempfile.gettempdir(), f"django-replica-router-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, so that connections that were closed a moment ago are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def wait_until(
    condition: Callable[[], object], *, timeout: float, failure: Callable[[], str]
) -> None:
    """Return as soon as a condition holds, and raise ClusterError if it does not in time."""
    if not wait_for(condition, timeout=timeout):
        raise ClusterError(f"{failure()} Waited {timeout:.3g} s.")


class Server:
    """A server process that keeps its port and its directory for life."""

    host = LOOPBACK
    # What makes the process end at once, without care for its data.
    end_signal = SIGTERM

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.data_directory = workspace.make_directory(name)
        self.log_path = workspace.path / f"{name}.log"
        self._workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False
        self._is_suspended = False

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "stopped"
        return f"<{type(self).__name__} {self.name!r} on {self.host}:{self.port}, {state}>"

    @property
    def is_running(self) -> bool:
        """Return whether the process exists, be it suspended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the id of the running process."""
        if self._process is None or self._process.poll() is not None:
            raise ClusterError(f"{self.name} is not running. Call start() first.")
        return self._process.pid

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self, pid: int) -> bool:
        """Return whether the server takes connections, and is the process with this id."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return when it takes connections; do nothing if it runs."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_running:
            self._discard_process()
            already_written = self.log_path.stat().st_size if self.log_path.exists() else 0
            process = self._process = self._workspace.spawn(
                self._command(),
                directory=self.data_directory,
                log_path=self.log_path,
                end_signal=self.end_signal,
            )
            self._wait_ready(process, timeout=max(0.0, deadline - time.monotonic()))
            if process.poll() is not None:
                self._require_address_in_use(process.returncode, already_written)
                if time.monotonic() >= deadline:
                    raise ClusterError(f"{self.name} cannot have its port {self.port} back.")
                self._change_port()
        self._has_run = True

    def _wait_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        wait_until(
            lambda: process.poll() is not None or self._is_ready(process.pid),
            timeout=timeout,
            failure=lambda: f"{self.name} takes no connections. {last_lines(self.log_path)}",
        )

    def _require_address_in_use(self, code: int, already_written: int) -> None:
        """Raise unless the server ended because someone else has its port."""
        if b"Address already in use" not in self.log_path.read_bytes()[already_written:]:
            raise ClusterError(
                f"{self.name} ended with exit code {code} while it started. "
                f"{last_lines(self.log_path)}"
            )

    def _change_port(self) -> None:
        if self._has_run:  # its clients know the port; whoever has taken it may go away
            time.sleep(PORT_RETRY_INTERVAL)
        else:
            self.port = free_port()

    def _discard_process(self) -> None:
        """Forget a process that has ended."""
        if self._process is not None:
            self._process.wait()
            self._workspace.forget(self._process)
            self._process = None
        self._is_suspended = False

    def _stop_by(self, number: Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            self._let_go_on(process.pid)
            process.send_signal(number)
            wait_until(
                lambda: process.poll() is not None,
                timeout=STOP_TIMEOUT,
                failure=lambda: f"{self.name} does not stop. {last_lines(self.log_path)}",
            )
        self._discard_process()

    def kill(self) -> None:
        """Kill all processes of the server, as a crash would, and return when they are gone."""
        process = self._process
        if process is not None and process.poll() is None and not kill_family(process.pid):
            raise ClusterError(f"{self.name} (pid {process.pid}) survives SIGKILL.")
        self._discard_process()

    def ask_to_end(self) -> None:
        """Make the server end at once, without care for its data, and do not wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._let_go_on(self._process.pid)
            self._process.send_signal(self.end_signal)

    def ensure_ended(self) -> None:
        """Return when the server has ended, and kill it if it does not."""
        if self._process is not None:
            pid = self._process.pid
            wait_for(lambda: is_gone(pid), timeout=END_TIMEOUT)
        self.kill()

    def suspend(self) -> None:
        """Freeze the server: it keeps its port and its connections, and answers nothing."""
        pid = self.pid
        self._is_suspended = True
        suspend_family(pid)

    def resume_process(self) -> None:
        """Let a suspended server go on."""
        self._let_go_on(self.pid)

    def _let_go_on(self, pid: int) -> None:
        # To find the children of one that was never suspended takes a look at all processes of the machine.
        if self._is_suspended:
            continue_family(pid)
            self._is_suspended = False
