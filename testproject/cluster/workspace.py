"""The temporary directory of a cluster, the account its servers run under, and the record of their processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testproject.cluster import watchdog
from testproject.cluster.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user the servers run as."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Return whether this is another user than the one running Python."""
        return self.uid != os.geteuid()

    @property
    def popen_arguments(self) -> dict[str, Any]:
        """Return the arguments of subprocess.Popen that make a process run under this account."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    @classmethod
    def for_servers(cls) -> Account:
        """Return the present user, or for root, as whom PostgreSQL does not run, an unprivileged one."""
        uid = os.geteuid()
        if uid != 0:
            return cls(name=str(uid), uid=uid, gid=os.getegid())
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
        raise ClusterError(
            "PostgreSQL does not run as root, and there is neither a user 'postgres' nor a user 'nobody' to run it as. "
            "Create one, or start this program as another user than root."
        )


class Workspace:
    """A temporary directory whose processes are recorded, so that none is left behind."""

    def __init__(self) -> None:
        self.account = Account.for_servers()
        self.path = Path(tempfile.mkdtemp(prefix="replica-router-")).resolve()
        # The caller's PG* variables and locale must not reach the servers; messages in English are looked at below.
        self.environment = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}
        self._pids: set[int] = set()
        self._lock = threading.Lock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        try:
            if self.account.is_other:
                self._let_account_enter()
            self._write_pids()
            self._watchdog = self._start_watchdog()
        except BaseException:
            self.remove()
            raise

    def _let_account_enter(self) -> None:
        # The directory stays root's, as root writes in it; the servers own the directories inside it.
        self.path.chmod(0o711)
        closed = [parent for parent in self.path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise ClusterError(
                f"The user {self.account.name!r}, who runs the servers, cannot enter {str(closed[-1])!r}. Set TMPDIR to "
                f"a directory that every user may enter, such as /tmp."
            )

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # Isolated and without site-packages, so that it starts in a few milliseconds.
            [sys.executable, "-I", "-S", watchdog.__file__, str(self.path)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches the whole session of a terminal; the watchdog is there for what comes after.
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
        self, command: Sequence[str], *, directory: Path, log_path: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process under the account, and record it."""
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                # Also the mark by which the watchdog knows that a process id is still this process.
                cwd=directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must not stop servers in disorder behind their owner's back.
                start_new_session=True,
                **self.account.popen_arguments,
            )
        with self._lock:
            self._pids.add(process.pid)
            self._write_pids()
        return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that has ended out of the record."""
        with self._lock:
            self._pids.discard(process.pid)
            self._write_pids()

    def _write_pids(self) -> None:
        # Renamed into place: the watchdog must never read half of it.
        draft = self.path / "pids.new"
        draft.write_text(" ".join(map(str, self._pids)))
        draft.replace(self.path / "pids")

    def run(self, command: Sequence[str], *, directory: Path, log_path: Path) -> None:
        """Run a program to its end, and raise with its last words if it fails."""
        process = self.spawn(command, directory=directory, log_path=log_path)
        try:
            process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            self.forget(process)
        if process.returncode:
            raise ClusterError(
                f"{Path(command[0]).name} failed with exit code {process.returncode}. {last_lines(log_path)}"
            )

    def remove(self) -> None:
        """Remove the directory and send the watchdog home."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._watchdog is not None:
            assert self._watchdog.stdin is not None  # noqa: S101 - a pipe was asked for
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None


def last_lines(log_path: Path, *, count: int = 15) -> str:
    """Return the end of a log as a sentence for an error message."""
    try:
        lines = log_path.read_text(errors="replace").splitlines()[-count:]
    except OSError as error:
        return f"Its log cannot be read: {error}."
    return "\n".join([f"The last lines of {log_path.name}:", *lines])
