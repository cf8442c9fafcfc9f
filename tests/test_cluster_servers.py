"""The servers of tests and demonstration: each by itself."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis

from testproject.cluster import Cluster, ClusterError, PostgresServer, ReplicaServer, ValkeyServer
from testproject.cluster.postgres import record_end
from testproject.cluster.processes import children_of, is_gone
from testproject.cluster.server import wait_until
from tests.own_cluster import (  # noqa: F401 - fixtures
    TIMEOUT,
    answers_on,
    cache,
    cluster,
    primary,
    reads,
    replica,
    shared_cluster,
    shared_memory_ids,
    shared_memory_of,
    write,
)

# ruff: noqa: F811 - fixtures are arguments of the same name


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
        [(lsn,)] = primary.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        replica.wait_replayed(lsn)

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
