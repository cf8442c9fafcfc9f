"""Processes by their ids: children, signals, and the end of what a killed parent has left behind.

The last is why this file makes do with the standard library: run as a script it is the watchdog of
a cluster. It waits for the end of its standard input, a pipe whose other end the parent holds and
loses however it dies, SIGKILL included. Then it ends the recorded servers and removes their
directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

HAS_PROC = Path("/proc/self/stat").exists()
PATIENCE = 5.0
POLL_INTERVAL = 0.002


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def start_time(pid: int) -> str:
    """Return what tells a process from a later one with the same id, if the system says it."""
    try:
        return stat_fields(pid)[19]
    except OSError:
        return "unknown"


def children_of(parent: int) -> list[int]:
    """Return the ids of the direct children of a process."""
    if not HAS_PROC:
        command = ["/bin/ps", "-A", "-o", "pid=,ppid="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listing.splitlines()]
        return [int(pid) for pid, parent_of_pid in pairs if int(parent_of_pid) == parent]
    children = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended since it was listed
                if int(stat_fields(int(entry))[1]) == parent:
                    children.append(int(entry))
    return children


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, even if nobody has asked for its exit code yet."""
    try:
        os.kill(pid, 0)
        return HAS_PROC and stat_fields(pid)[0] in "ZX"
    except OSError:  # no such process, or the id is another user's by now
        return True


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def suspend_family(pid: int) -> None:
    """Freeze a process and its children."""
    # The parent first: frozen, it has no more children after they were listed.
    send_signal(pid, signal.SIGSTOP)
    for child in children_of(pid):
        send_signal(child, signal.SIGSTOP)


def continue_family(pid: int) -> None:
    """Let a frozen process and its children go on."""
    for child in children_of(pid):
        send_signal(child, signal.SIGCONT)
    send_signal(pid, signal.SIGCONT)


def kill_family(pid: int, *, timeout: float = PATIENCE) -> bool:
    """Kill a process and its children with SIGKILL, and return whether all were gone in time."""
    send_signal(pid, signal.SIGSTOP)
    family = [pid, *children_of(pid)]
    for member in family:
        send_signal(member, signal.SIGKILL)
    return wait_for(lambda: all(map(is_gone, family)), timeout=timeout)


def wait_for(condition: Callable[[], object], *, timeout: float) -> bool:
    """Return True as soon as a condition holds, False if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


class ProcessRecord:
    """The file by which the watchdog knows which processes there are and how to end them."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "processes"
        self._draft = directory / "processes.new"

    def write(self, signals: dict[int, int]) -> None:
        """Replace the record: process ids, each with the signal that ends it at once."""
        lines = [f"{pid} {start_time(pid)} {number}\n" for pid, number in signals.items()]
        self._draft.write_text("".join(lines))
        # Renamed, so that the watchdog never reads half of it.
        self._draft.replace(self._path)

    def read(self) -> Iterable[tuple[int, int]]:
        """Return the recorded processes that still exist, each with its signal."""
        for line in self._path.read_text().splitlines():
            pid, started, number = line.split()
            # A later process may have been given the same id.
            if start_time(int(pid)) == started:
                yield int(pid), int(number)


def clean_up(directory: Path) -> None:
    """End the processes that were recorded in a directory, and remove it."""
    processes = dict(ProcessRecord(directory).read())
    for pid, number in processes.items():
        continue_family(pid)
        send_signal(pid, number)
    if not wait_for(lambda: all(map(is_gone, processes)), timeout=PATIENCE):
        for pid in processes:
            kill_family(pid)
    remove(directory)


def remove(directory: Path) -> None:
    """Remove a directory in which the child of a killed program may still write for a moment."""

    def is_removed() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    wait_for(is_removed, timeout=1.0)


def watch(directory: Path) -> None:
    """Wait for the parent's end, then clean up what it has left."""
    sys.stdin.buffer.read()
    if directory.exists():
        clean_up(directory)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
