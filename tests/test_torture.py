"""The torture: its schedule, its proxy, its controls, and a minute of all faults on the package."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from testproject.cluster import Cluster
from testproject.cluster.processes import wait_for
from tests.torture.arena import DATABASE
from tests.torture.control_reader import PAUSE, SOON, ControlReader
from tests.torture.controls import plan_for, plan_without
from tests.torture.faults import FAULTS
from tests.torture.proxy import ProxyProcess
from tests.torture.report import is_passed, text
from tests.torture.run import STRICT, Plan, new_cluster, run
from tests.torture.schedule import schedule
from tests.torture.schema import SCHEMA
from tests.torture.stalls import covered

SABOTAGES = (
    "token_compare_always_true",
    "retry_without_verification",
    "token_lowered_by_plain_set",
    "lsn_taken_before_commit",
    "old_timeline_replica_accepted",
    "watermark_kept_over_rebuild",
    "early_session_token_ignored",
    "tokens_of_old_timeline_bind_for_ever",
    "dropped_tokens_not_missed",
    "kept_objects_followed_blindly",
    "every_write_ignored",
    "writes_yield_as_well",
    "locks_waited_for",
    "hanging_servers_waited_for",
    "hanging_store_waited_for",
)


# 2. The schedule and the proxy ---------------------------------------------------------------------


def test_a_seed_gives_the_same_schedule_each_time() -> None:
    """A seed decides on all, and another on something else."""

    def rounds(seed: int) -> list[Any]:
        return list(islice(schedule(seed, list(FAULTS), range(3)), 3))

    assert rounds(1) == rounds(1) != rounds(2)


def test_a_schedule_breaks_no_cache_twice_at_once() -> None:
    """What has been killed can neither be emptied nor hang."""
    for steps in islice(schedule(7, list(FAULTS), range(3)), 50):
        for step in steps:
            scopes = [FAULTS[name].scope for name, _ in step.faults]
            assert scopes.count("cache") <= 1


def test_each_round_of_a_schedule_has_every_fault_once() -> None:
    """Faults come in pairs only on different replicas, and those of the whole cluster alone."""
    for steps in islice(schedule(7, list(FAULTS), range(3)), 20):
        names = [name for step in steps for name, _ in step.faults]
        assert sorted(names) == sorted(FAULTS)
        for step in steps:
            places = [place for _, place in step.faults]
            assert len(places) == len(set(places))
            if len(places) > 1:
                assert not any(FAULTS[name].scope == "cluster" for name, _ in step.faults)


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            # Its other end is reset, as the test wants it.
            with connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(100):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_proxy_breaks_the_network_and_mends_it(echo: int) -> None:
    """It relays; refuses; is silent, and delivers afterwards; resets; leads elsewhere."""
    with ProxyProcess({"a": echo}) as proxy:

        def dial() -> socket.socket:
            return socket.create_connection(("127.0.0.1", proxy.ports["a"]), timeout=5.0)

        with dial() as line:
            line.sendall(b"one")
            assert line.recv(10) == b"one"
            proxy.set_mode("a", "blackhole")
            line.settimeout(0.1)
            line.sendall(b"two")
            with dial() as late:
                late.sendall(b"three")
                with pytest.raises(TimeoutError):
                    line.recv(10)
                proxy.set_mode("a", "pass")
                line.settimeout(5.0)
                assert line.recv(10) == b"two"
                assert late.recv(10) == b"three"
            proxy.set_mode("a", "refuse")
            with pytest.raises(ConnectionResetError):
                line.recv(10)
        with pytest.raises(ConnectionRefusedError):
            dial()
        proxy.set_mode("a", "reset")
        with pytest.raises(ConnectionResetError), dial() as line:
            line.recv(10)
        proxy.set_target("a", echo)
        with dial() as line:
            line.sendall(b"four")
            assert line.recv(10) == b"four"
            proxy.set_mode("a", "refuse")
            proxy.set_mode("a", "blackhole")
            proxy.set_mode("a", "reset")
            proxy.set_mode("a", "pass")
        with dial() as line:
            line.sendall(b"five")
            assert line.recv(10) == b"five"


# 3. The controls: the package sabotaged --------------------------------------------------------------


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """The cluster that the controls share."""
    with new_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def healed_cluster(small_cluster: Cluster) -> Cluster:
    """The cluster as it was at the start."""
    small_cluster.heal()
    return small_cluster


def test_the_control_reader_finds_out_when_the_primary_could_not_answer(
    healed_cluster: Cluster,
) -> None:
    """Only that: a lock that holds up who reads there, a server that is down; and for how long."""
    primary = healed_cluster.primary
    primary.execute(SCHEMA, dbname=DATABASE)
    with ControlReader(primary.port, DATABASE) as reader:
        assert wait_for(lambda: reader.answers > 3, timeout=30.0)
        before = len(reader.outages())
        with primary.connect(DATABASE) as other:
            locked_at = time.monotonic()
            other.execute("BEGIN; LOCK TABLE torture_register")
            assert wait_for(lambda: len(reader.outages()) > before, timeout=30.0)
            answers = reader.answers
            other.execute("COMMIT")
            freed_at = time.monotonic()
        assert wait_for(lambda: reader.answers > answers, timeout=30.0)
        start, end = reader.outages()[-1]
        assert covered(start, end, [(locked_at - PAUSE, freed_at + SOON)]) > 0
        primary.kill()
        killed_at = time.monotonic()
        assert wait_for(lambda: reader.outages()[-1][1] > killed_at + SOON, timeout=30.0)
        answers = reader.answers
        primary.start()
        assert wait_for(lambda: reader.answers > answers, timeout=30.0)
        start, end = reader.outages()[-1]
        assert start <= killed_at + PAUSE + SOON
        assert end > killed_at


@pytest.mark.parametrize("control", SABOTAGES)
def test_a_sabotage_is_found_out(healed_cluster: Cluster, control: str) -> None:
    """With a rule of the package taken out, a short run has violations."""
    result = run(plan_for(control), healed_cluster)
    assert not result.failure, text(result)
    assert result.verdict.violations, text(result)


@pytest.mark.parametrize("atomic", [False, True], ids=["usual", "atomic requests"])
def test_the_directed_run_finds_nothing_in_the_package_itself(
    healed_cluster: Cluster, atomic: bool
) -> None:
    """Lag alone, which finds out most sabotages, does no harm to the package as it is.

    Here monotonic reads are strict: in the run with all faults they may yield.
    """
    plan = plan_without(
        "early_session_token_ignored",
        seconds=6.0,
        reads=1001,
        atomic_requests=atomic,
        router=STRICT,
    )
    result = run(plan, healed_cluster)
    # Not is_passed, which asks for reads on replicas as well: users who never pause for as long as
    # all replicas lag are right on the primary. The run with all faults asks for both.
    assert not result.failure, text(result)
    assert not result.verdict.violations, text(result)
    assert result.verdict.checked_reads > 1000, text(result)


# 4. The package ----------------------------------------------------------------------------------


def test_the_guarantees_hold_under_all_faults() -> None:
    """A minute of every fault there is, from many users in several processes: no violation."""
    plan = Plan(seconds=50.0, seed=20)
    with new_cluster(plan.replicas) as cluster:
        result = run(plan, cluster)
    assert is_passed(result), text(result)
