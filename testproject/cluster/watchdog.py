"""A process that outlives its parent just long enough to stop the parent's servers and remove their directory.

It is run by path with nothing but the standard library, and waits for the end of its standard input: the parent holds
the other end of that pipe and loses it however it dies, SIGKILL included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE = 5.0


def is_ours(pid: int, directory: Path) -> bool:
    """Return whether a process id still means a server that works inside the directory."""
    if not Path("/proc/self").exists():  # not Linux: nothing to compare with
        return True
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(directory)
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stop(pid: int) -> None:
    """Ask a server to stop at once, and kill it if it does not."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError):
        # PostgreSQL takes SIGQUIT as "immediate shutdown": it ends its children and frees its shared memory, which
        # SIGKILL would leave behind. A suspended server must be continued to hear it.
        os.kill(pid, signal.SIGQUIT)
        os.kill(pid, signal.SIGCONT)
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)


def main(directory: Path) -> None:
    """Wait for the parent's end, then clean up what it left."""
    sys.stdin.buffer.read()
    with contextlib.suppress(FileNotFoundError):  # gone: the parent has cleaned up itself
        for pid in map(int, (directory / "pids").read_text().split()):
            if is_ours(pid, directory):
                stop(pid)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
