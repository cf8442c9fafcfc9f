"""Programs of this project, such as a site's workers: started, asked, and ended by their ids."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from testproject.cluster.errors import ProgramError
from testproject.cluster.managed import Managed
from testproject.cluster.processes import continue_family

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT = 10.0
LOG_TAIL = 4000


def site_environment(
    databases: Mapping[str, Mapping[str, Any]],
    cache_url: str | None,
    *,
    settings: str = "testproject.settings",
    routing: str = "package",
    **others: str,
) -> dict[str, str]:
    """Return the environment that tells the test project's settings where the servers are."""
    environ = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": settings,
        "PYTHONPATH": str(ROOT),
        "TESTPROJECT_DATABASES": json.dumps(databases),
        "TESTPROJECT_ROUTING": routing,
        **others,
    }
    if cache_url is not None:
        environ["TESTPROJECT_CACHE_URL"] = cache_url
    return environ


def run_django(environ: Mapping[str, str], *arguments: str) -> str:
    """Run a management command in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProgramError(f"The command {arguments[0]} failed: {done.stderr[-LOG_TAIL:]}")
    return done.stdout


@contextmanager
def running_program(
    command: Sequence[str], *, timeout: float = STOP_TIMEOUT, **popen: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run a program, and end it and its children however the block ends.

    Args:
        command: the program and its arguments.
        timeout: seconds within which it has to end in good order; then it is killed.
        popen: arguments for ``subprocess.Popen``.
    """
    # A group of its own: Ctrl-C reaches this process alone, which then ends that one; and by the
    # group its children are found where it has ended before them.
    process = subprocess.Popen(command, **{"cwd": ROOT, "process_group": 0, **popen})
    try:
        yield process
    finally:
        end_program(process, timeout=timeout)


def end_program(process: subprocess.Popen[Any], *, timeout: float = STOP_TIMEOUT) -> None:
    """End a program that leads a group: itself in good order if it can, then all of the group."""
    try:
        if process.poll() is None and timeout:
            process.terminate()
            continue_family(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it has not read is lost
                    pipe.close()


def log_tail(log: IO[bytes], length: int = LOG_TAIL) -> str:
    """Return the end of what a program has written to a file."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - length))
    return log.read().decode(errors="replace")


class LineProgram(Managed):
    """A program that answers each line of its standard input with one, both in JSON.

    It is to end when its standard input ends.

    Args:
        command: the program and its arguments.
        environ: its environment; this process's if it is None.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environ = environ
        self._received = b""
        self._name = " ".join(command[1:])[:60]

    def _open(self, stack: ExitStack) -> None:
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._log: IO[bytes] = log
        self.process = stack.enter_context(
            running_program(
                self._command,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        )
        stack.callback(self._let_end)

    def _let_end(self) -> None:
        with contextlib.suppress(OSError, ProgramError):
            self.end()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return int(self.process.pid)

    def end(self, timeout: float = STOP_TIMEOUT) -> None:
        """Let it end in good order.

        Raises:
            ProgramError: it does not end in time.
        """
        _pipe(self.process.stdin).close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"{self._name} does not end within {timeout:.0f} s.") from error

    def kill(self) -> None:
        """Kill it, as a crash would."""
        end_program(self.process, timeout=0.0)

    def ask(self, question: Any, *, timeout: float | None = None) -> Any:
        """Have it do something, and return what it answers.

        Raises:
            ProgramError: it has ended, or does not answer in time.
        """
        self.send(question)
        return self.receive(timeout)

    def send(self, question: Any) -> None:
        """Ask for something, and do not wait for the answer."""
        try:
            stdin = _pipe(self.process.stdin)
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError) as error:  # a broken pipe, a closed one
            raise self._ended() from error

    def receive(self, timeout: float | None = None) -> Any:
        """Return the answer to what was sent."""
        stdout = _pipe(self.process.stdout).fileno()
        while b"\n" not in self._received:
            if not select.select([stdout], [], [], timeout)[0]:
                raise ProgramError(f"{self._name} does not answer within {timeout:.0f} s.")
            part = os.read(stdout, 65_536)
            if not part:
                raise self._ended()
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _ended(self) -> ProgramError:
        return ProgramError(f"{self._name} has ended: {log_tail(self._log)}")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ProgramError("The program was started without a pipe to it.")
    return pipe
