"""The temporary directory of a cluster, the account its servers run under, and their record."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

from testproject.cluster import processes
from testproject.cluster.errors import ClusterError
from testproject.cluster.processes import ProcessRecord, kill_family

MEMORY = Path("/dev/shm")  # noqa: S108 - used by mkdtemp, which makes a directory of our own there
MEMORY_NEEDED = 6 * 1024**3
PROGRAM_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user that the servers run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> Account:
        """Return the present user or, as PostgreSQL does not run as root, another one for root."""
        uid = os.geteuid()
        if uid != 0:
            return cls(name=f"with uid {uid}", uid=uid, gid=os.getegid())
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
        raise ClusterError(
            "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run "
            "it as. Create one, or start this program as another user than root."
        )

    @property
    def is_other(self) -> bool:
        """Return whether this is another user than the one who runs Python."""
        return self.uid != os.geteuid()

    @property
    def popen_arguments(self) -> dict[str, Any]:
        """Return the arguments by which subprocess.Popen starts a process under this account."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


class Workspace:
    """A temporary directory whose processes are recorded, so that none is left behind."""

    def __init__(self) -> None:
        self.account = Account.for_servers()
        # The caller's PG* variables must not reach the servers, and their logs are read in English.
        self.environment = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}
        self.path = Path(tempfile.mkdtemp(prefix="replica-router-", dir=_parent_directory()))
        self._record = ProcessRecord(self.path)
        self._signals: dict[int, int] = {}
        self._lock = threading.Lock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        try:
            self._record.write({})
            if self.account.is_other:
                self._let_account_enter()
            self._watchdog = self._start_watchdog()
        except BaseException:
            self.remove()
            raise

    def _let_account_enter(self) -> None:
        # The directory stays root's, because root writes in it. The servers own directories inside.
        self.path.chmod(0o711)
        closed = [parent for parent in self.path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise ClusterError(
                f"The user {self.account.name}, who is to run the servers, cannot enter "
                f"{str(closed[0])!r}. Set TMPDIR to a directory that every user may enter."
            )

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # Isolated and without site-packages it is there in a few milliseconds.
            [sys.executable, "-I", "-S", processes.__file__, str(self.path)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in a terminal reaches the whole session, and must not end the watchdog.
            start_new_session=True,
        )

    def make_directory(self, name: str) -> Path:
        """Make a directory that belongs to the account."""
        path = self.path / name
        path.mkdir(mode=0o700)
        if self.account.is_other:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def spawn(
        self, command: Sequence[str], *, directory: Path, log_path: Path, end_signal: Signals
    ) -> subprocess.Popen[bytes]:
        """Start a process under the account, and record it with the signal that ends it at once."""
        with self._lock, log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal must not stop the servers behind their owner's back.
                start_new_session=True,
                **self.account.popen_arguments,
            )
            self._signals[process.pid] = end_signal
            self._record.write(self._signals)
        return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that has ended out of the record."""
        with self._lock:
            self._signals.pop(process.pid, None)
            self._record.write(self._signals)

    def run(self, command: Sequence[str], *, directory: Path, log_path: Path) -> None:
        """Run a program to its end, and raise ClusterError with its last words if it fails."""
        process = self.spawn(command, directory=directory, log_path=log_path, end_signal=SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PROGRAM_TIMEOUT)
        finally:
            if process.returncode is None:
                kill_family(process.pid)
                process.wait()
            self.forget(process)
        if process.returncode:
            raise ClusterError(
                f"{Path(command[0]).name} failed with exit code {process.returncode}. "
                f"{last_lines(log_path)}"
            )

    def remove(self) -> None:
        """Remove the directory and send the watchdog home."""
        processes.remove(self.path)
        if self._watchdog is not None:
            # Its standard input ends; if anything is left, it tries again to remove it.
            self._watchdog.communicate()
            self._watchdog = None


def _parent_directory() -> Path:
    """Return TMPDIR if it is set, else memory if there is enough, else the system's default.

    A data directory is a thousand small files, and ext4 does not use an inode again for minutes
    after its file was deleted. The search for others makes every cluster after the first start in
    three seconds instead of one.
    """
    if "TMPDIR" not in os.environ and MEMORY.is_dir():
        memory = os.statvfs(MEMORY)
        # Programs may have to be copied there, see binaries.py.
        is_usable = os.access(MEMORY, os.W_OK) and not memory.f_flag & os.ST_NOEXEC
        if is_usable and memory.f_bavail * memory.f_frsize >= MEMORY_NEEDED:
            return MEMORY
    return Path(tempfile.gettempdir()).resolve()


def last_lines(log_path: Path, *, count: int = 15) -> str:
    """Return the end of a log as part of an error message."""
    try:
        lines = log_path.read_text(errors="replace").splitlines()[-count:]
    except OSError as error:
        return f"Its log cannot be read: {error}."
    return "\n".join([f"The last lines of {log_path.name}:", *lines])
