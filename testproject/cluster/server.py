"""What a PostgreSQL and a Valkey server have in common: a process on a loopback port, started, stopped, killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from testproject.cluster.errors import ClusterError
from testproject.cluster.workspace import Workspace, last_lines

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
END_TIMEOUT = 5.0
POLL_INTERVAL = 0.002

_ports_given: set[int] = set()


def free_port() -> int:
    """Return a loopback port on which nobody listens now.

    1. Not port 0: the kernel would choose among the ports it also gives to outgoing connections, and one of those could
       take the port of a server that is down for a moment.
    2. Not the ``random`` module: test runners seed it, so that parallel runs would choose the same ports.
    3. Never the same port twice in one process: it may belong to a server that is down for a moment.
    """
    while True:
        port = 10240 + secrets.randbelow(32768 - 10240)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


def wait_until(
    condition: Callable[[], object], *, timeout: float, failure: Callable[[], str]
) -> None:
    """Return as soon as a condition holds, and raise ClusterError with the failure's words if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise ClusterError(f"{failure()} Waited {timeout:g} s.")
        time.sleep(POLL_INTERVAL)


def children_of(parent: int) -> list[int]:
    """Return the process ids of the direct children of a process."""
    if Path("/proc/self/stat").exists():
        pairs = [(pid, fields[1]) for pid, fields in _stats()]
    else:
        command = ["/bin/ps", "-A", "-o", "pid=,ppid="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True)
        pairs = [(int(line.split()[0]), line.split()[1]) for line in listing.stdout.splitlines()]
    return [pid for pid, parent_of_pid in pairs if parent_of_pid == str(parent)]


def _stats() -> list[tuple[int, list[str]]]:
    stats = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stats.append((int(entry), _stat(int(entry))))
    return stats


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name, which may itself hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return _stat(pid)[0] in "ZX"
    except OSError:
        return Path("/proc/self/stat").exists()


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Server:
    """A server process that keeps its port and its directory for life."""

    host = LOOPBACK

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.data_directory = workspace.make_directory(name)
        self.log_path = workspace.path / f"{name}.log"
        self._workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._may_change_port = True

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "stopped"
        return f"<{type(self).__name__} {self.name} on {self.host}:{self.port}, {state}>"

    @property
    def is_running(self) -> bool:
        """Return whether the process exists, be it suspended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id of the running server."""
        if self._process is None or self._process.poll() is not None:
            raise ClusterError(f"{self.name} is not running. Call start() first.")
        return self._process.pid

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return when it takes connections; do nothing if it runs."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_running:
            written_before = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._process = self._workspace.spawn(
                self._command(), directory=self.data_directory, log_path=self.log_path
            )
            wait_until(
                lambda: not self.is_running or self._is_ready(),
                timeout=max(0.0, deadline - time.monotonic()),
                failure=lambda: (
                    f"{self.name} does not take connections. {last_lines(self.log_path)}"
                ),
            )
            if not self.is_running:
                self._check_address_in_use(written_before, deadline)
        self._may_change_port = False

    def _check_address_in_use(self, written_before: int, deadline: float) -> None:
        """Make ready for another try if the port was taken between choosing and using it, else raise."""
        code = self._discard_process()
        said = self.log_path.read_bytes()[written_before:]
        if b"Address already in use" not in said or time.monotonic() >= deadline:
            raise ClusterError(
                f"{self.name} ended with exit code {code} at its start. {last_lines(self.log_path)}"
            )
        if self._may_change_port:
            self.port = free_port()
        else:  # others know the port by now; whoever has it may go away
            time.sleep(10 * POLL_INTERVAL)

    def _discard_process(self) -> int | None:
        """Forget a process that has ended, and return its exit code."""
        if self._process is None:
            return None
        code = self._process.wait()
        self._workspace.forget(self._process)
        self._process = None
        return code

    def _stop_by(self, number: signal.Signals) -> None:
        if self.is_running:
            self.resume_process()
            pid = self.pid
            send_signal(pid, number)
            wait_until(
                lambda: not self.is_running,
                timeout=STOP_TIMEOUT,
                failure=lambda: f"{self.name} does not stop. {last_lines(self.log_path)}",
            )
        self._discard_process()

    def kill(self) -> None:
        """Kill the process and its children with SIGKILL, as a crash would, and return when all are gone."""
        if self.is_running:
            pid = self.pid
            # Stopped first, so that it has no more children after they were listed.
            send_signal(pid, signal.SIGSTOP)
            family = [pid, *children_of(pid)]
            for member in family:
                send_signal(member, signal.SIGKILL)
            wait_until(
                lambda: all(is_gone(member) for member in family),
                timeout=STOP_TIMEOUT,
                failure=lambda: f"{self.name} survives SIGKILL.",
            )
        self._discard_process()

    def ask_to_end(self) -> None:
        """Ask the server to end at once, without care for its data, and do not wait."""
        if self.is_running:
            self.resume_process()
            send_signal(self.pid, signal.SIGQUIT)

    def ensure_ended(self) -> None:
        """Wait a moment for the server's end, and kill it if it does not come."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=END_TIMEOUT)
        self.kill()

    def suspend(self) -> None:
        """Freeze the process and its children: they keep port and connections, and answer nothing."""
        pid = self.pid
        send_signal(
            pid, signal.SIGSTOP
        )  # first, so that it has no more children after they were listed
        for child in children_of(pid):
            send_signal(child, signal.SIGSTOP)

    def resume_process(self) -> None:
        """Let a suspended process and its children go on."""
        pid = self.pid
        for child in children_of(pid):
            send_signal(child, signal.SIGCONT)
        send_signal(pid, signal.SIGCONT)
