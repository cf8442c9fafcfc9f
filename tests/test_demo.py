"""The demonstration, run as a reader of the README runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from testproject.cluster.programs import ROOT, running_program
from tests.window import Caller, address_of

DEMO = [sys.executable, "-m", "testproject"]
QUICK = ["--json", "--seconds", "4", "--users", "8", "--lag", "0", "300"]
START_SECONDS = 60.0
END_SECONDS = 30.0
INTERRUPTED = 130


@pytest.fixture(scope="module")
def finished() -> subprocess.CompletedProcess[str]:
    """A quick run that has come to its end."""
    return subprocess.run(
        [*DEMO, *QUICK], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture(scope="module")
def document(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the quick run has printed."""
    assert finished.stdout, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture
def serving() -> Iterator[subprocess.Popen[str]]:
    """The window, with its sites and servers."""
    with running_program(
        [*DEMO, "serve"],
        timeout=END_SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


def cells(document: dict[str, Any], routing: str) -> list[dict[str, Any]]:
    """Return the lines of one way of routing."""
    return [cell for cell in document["cells"] if cell["routing"] == routing]


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of each process that has not ended."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat=,args="],  # noqa: S607 - ps has no one place
        capture_output=True,
        text=True,
        check=True,
    )
    fields = [line.split(maxsplit=3) for line in listing.stdout.splitlines()]
    return {
        int(pid): (int(parent), " ".join(command))
        for pid, parent, state, *command in fields
        if not state.startswith("Z")
    }


def family_of(pid: int) -> list[int]:
    """Return the process and all that descend from it."""
    present = processes()
    family = [pid]
    for member in family:
        family += [child for child, (parent, _) in present.items() if parent == member]
    return family


def wait_for_family(pid: int, program: str) -> list[int]:
    """Return the process and its descendants as soon as one of them runs the program."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        present = processes()
        family = family_of(pid)
        if any(program in present[member][1] for member in family if member in present):
            return family
        time.sleep(0.05)
    pytest.fail(f"No process ran {program}.")


def assert_all_end(pids: list[int]) -> None:
    """Wait for the end of each process."""
    deadline = time.monotonic() + END_SECONDS
    while survivors := processes().keys() & set(pids):
        assert time.monotonic() < deadline, f"Processes {survivors} are left."
        time.sleep(0.05)


def test_random_routing_shows_old_data(document: dict[str, Any]) -> None:
    """The control: where replicas lag, a random one shows users old data."""
    assert [cell["stale_reads"] > 0 for cell in cells(document, "random") if cell["lag_ms"]] == [
        True
    ]


def test_package_shows_nothing_old(
    document: dict[str, Any], finished: subprocess.CompletedProcess[str]
) -> None:
    """With the package there is no old read, no log-out and no error, and the exit status says so."""
    for cell in cells(document, "package"):
        found = [cell["stale_reads"], cell["logouts"], cell["errors"]]
        assert found == [0, 0, 0], cell["examples"]
    assert (finished.returncode, document["ok"]) == (0, True), finished.stderr


def test_every_cell_was_visited(document: dict[str, Any]) -> None:
    """Each routing meets each lag, with reads, writes and more than one worker."""
    assert [(cell["routing"], cell["lag_ms"]) for cell in document["cells"]] == [
        (routing, lag_ms) for routing in ["random", "pin", "package"] for lag_ms in [0, 300]
    ]
    for cell in document["cells"]:
        assert cell["reads"] > cell["writes"] > 0
    assert max(cell["workers_seen"] for cell in document["cells"]) == document["workers"]


def test_package_reads_from_replicas(document: dict[str, Any]) -> None:
    """Reads of users who have not just written come from replicas."""
    assert min(cell["replica_share_quiet"] for cell in cells(document, "package")) > 0.5


def orders(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what the command `orders` has printed, on replicas that are five seconds behind."""
    return subprocess.run(
        [*DEMO, "orders", "--lag", "5000", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_orders_shows_everybody_what_is_promised() -> None:
    """Who has placed, was handed the token, or names the key, sees; who has neither is shown what was."""
    shown = orders()
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("kept:") == 11
    assert "nothing yet" in shown.stdout
    assert "WriteInQuery: orders_order" in shown.stdout
    later = next(line for line in shown.stdout.splitlines() if "later" in line)
    assert "replica" in later
    assert "default" not in later


def test_orders_tells_of_promises_that_are_broken() -> None:
    """The control: a random replica shows nobody the order."""
    shown = orders("--routing", "random")
    assert shown.returncode == 1, shown.stdout + shown.stderr
    for state in ["placed", "packed", "shipped", "delivered"]:
        assert f"BROKEN: the order, {state}" in shown.stdout
    assert "instead of 'the order, placed'." in shown.stderr


def test_serve_answers_and_stops(serving: subprocess.Popen[str]) -> None:
    """From its first page on, replicas serve; SIGTERM leaves no process behind."""
    url = address_of(serving)
    with closing(Caller(url)) as caller:
        queries = caller.tell("read")["package"]["page"]["queries"]
    assert {query["server"] for query in queries} <= {"replica1", "replica2"}
    assert {query["reason"] for query in queries} <= {"CAUGHT_UP", "NO_TOKEN"}

    family = family_of(serving.pid)
    serving.send_signal(signal.SIGTERM)

    assert serving.wait(END_SECONDS) == INTERRUPTED
    assert_all_end(family)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_interrupted_run_stops_everything() -> None:
    """Ctrl-C in the middle of a run leaves no process behind, and prints no result."""
    with running_program(
        [*DEMO, *QUICK],
        timeout=END_SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        family = wait_for_family(process.pid, "gunicorn")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=END_SECONDS)

    assert (process.returncode, output) == (INTERRUPTED, "")
    assert_all_end(family)
