"""Programs that tests and benchmarks start: they are asked, and none is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from testproject.cluster import ProgramError
from testproject.cluster.gunicorn import serving
from testproject.cluster.managed import Managed
from testproject.cluster.processes import is_gone
from testproject.cluster.programs import LineProgram, run_django, running_program, site_environment
from tests.conftest import wait_until

# A program with a child; neither cares about SIGTERM, and both would stay for ever.
FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
while True:
    time.sleep(60)
"""

ECHO = """
import json, sys
for line in sys.stdin:
    print(json.dumps([json.loads(line)]), flush=True)
"""


def started_family(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the program and its child."""
    assert process.stdout is not None
    return [process.pid, int(process.stdout.readline())]


def python(code: str) -> Sequence[str]:
    """Return the command that runs code."""
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("number", [None, signal.SIGSTOP, signal.SIGKILL])
def test_a_program_and_its_children_end_where_a_test_fails(number: signal.Signals | None) -> None:
    """Those that hear no SIGTERM, those that stand still, and those whose parent has died before."""
    family = []

    def fail() -> None:
        with running_program(
            python(FAMILY), timeout=0.2, stdout=subprocess.PIPE, text=True
        ) as process:
            family.extend(started_family(process))
            if number is not None:
                process.send_signal(number)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for pid in family:
        wait_until(lambda pid=pid: is_gone(pid), "the end of the family")


def test_a_program_may_end_in_good_order() -> None:
    """SIGTERM comes first, and a program that stands still is let go on to hear it."""
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); "
    code += "print(flush=True); signal.pause()"
    with running_program(python(code), timeout=60.0, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == 3


def test_a_program_answers_line_by_line() -> None:
    """It ends when its standard input does."""
    with LineProgram(python(ECHO)) as program:
        assert program.ask({"a": 1}) == [{"a": 1}]
        program.send(1)
        program.send(2)
        assert [program.receive(60.0), program.receive(60.0)] == [[1], [2]]
    assert program.process.returncode == 0


def test_what_a_program_has_said_last_is_told() -> None:
    """In the error, where it has ended instead of answering."""
    with LineProgram(python("import sys; sys.exit('no more')")) as program:
        program.process.wait(60.0)
        with pytest.raises(ProgramError, match=r"(?s)has ended.*no more"):
            program.ask(1)


def test_no_answer_is_not_waited_for_for_ever() -> None:
    """And it is killed in the end."""
    with LineProgram(python("import signal; signal.pause()")) as program:
        with pytest.raises(ProgramError, match="does not answer within 0 s"):
            program.ask(1, timeout=0.05)
        program.kill()
    assert program.process.returncode == -signal.SIGKILL


def test_a_program_that_does_not_end_is_an_error() -> None:
    """Where it is let end in good order."""
    with LineProgram(python("import time; time.sleep(600)")) as program:
        with pytest.raises(ProgramError, match="does not end within 0 s"):
            program.end(0.05)
        program.kill()


def test_a_command_that_fails_tells_why() -> None:
    """The end of its standard error is in the message."""
    environ = site_environment({"default": {"ENGINE": ""}}, None)
    with pytest.raises(ProgramError, match=r"(?s)The command nonsense failed.*Unknown command"):
        run_django(environ, "nonsense")


def test_a_site_that_does_not_start_tells_why() -> None:
    """The end of gunicorn's log is in the message, and gunicorn has ended."""
    environ = site_environment({}, None)
    with (
        pytest.raises(ProgramError, match=r"(?s)The site has ended.*no_such_module"),
        serving("no_such_module", environ, workers=1),
    ):
        pytest.fail("it serves")


def test_a_site_that_answers_with_an_error_is_not_up() -> None:
    """It is not waited for until the time is over."""
    environ = site_environment({"default": {"ENGINE": ""}}, None, routing="primary")
    with (
        pytest.raises(ProgramError, match="answers / with an error"),
        serving("testproject.wsgi", environ, workers=1, page="/", cookie="sessionid=somebody"),
    ):
        pytest.fail("it serves")


def test_what_is_opened_halfway_is_closed() -> None:
    """The block is not entered, and what it would have closed is closed."""
    closed = []

    class Half(Managed):
        def _open(self, stack: ExitStack) -> None:
            stack.callback(closed.append, "first")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Half():
        pytest.fail("it is open")
    assert closed == ["first"]
