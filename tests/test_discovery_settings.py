"""TLS and passwords of discovered servers; processes, threads, settings."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from django_replica_router import scope
from django_replica_router.conf import Config, get_config
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import discovery, registry
from django_replica_router.replicas.connecting import refused_replicas
from django_replica_router.replicas.discovery import Databases, entries_for
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import get_monitor
from testproject.cluster import Cluster, ReplicaServer
from testproject.cluster.programs import running_program
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, wait_until, wait_until_known
from tests.discovered import (  # noqa: F401 - fixtures
    A2,
    A3,
    SECOND,
    THIRD,
    Discover,
    _standbys,
    discover,
    names,
    rounds,
    serving,
    standbys,
    template,
    the_monitor,
    wait_until_serving,
    where,
)
from tests.dnsmasq import NAME, Dnsmasq
from tests.programs import NO_NEWS, environment
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.not_pooled("the servers that are found are reached themselves"),
]


# TLS, and passwords


def test_the_name_of_the_host_stays(
    discover: Discover, names: Dnsmasq, cluster: Cluster, template: dict[str, Any]
) -> None:
    """Only the name server of the test knows it: the connection is opened to the address."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    assert visit(Client(), where) == A2
    for raw in (connections[A2].connection, the_monitor()._pollers[A2]._connection):
        assert (raw.info.host, raw.info.hostaddr) == (NAME, SECOND)
        assert raw.info.port == int(template["PORT"])


@pytest.fixture
def certify(
    standbys: list[ReplicaServer], template: dict[str, Any]
) -> Iterator[Callable[[str], None]]:
    """Return a function that gives the first standby a certificate, which clients demand."""
    standby = standbys[0]

    if not standby._value("SELECT setting FROM pg_settings WHERE name = 'ssl_library'"):
        pytest.skip(
            "this build of PostgreSQL has no TLS; Debian's has (REPLICA_ROUTER_POSTGRES_BIN)"
        )

    def certify(name: str) -> None:
        directory = standby.data_directory
        standby._workspace.run(
            [
                *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"],
                *["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
                *["-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")],
            ],
            directory=directory,
            log_path=standby.log_path,
        )
        (directory / "tls.key").chmod(0o600)
        standby.configure(ssl_cert_file="tls.crt", ssl_key_file="tls.key", ssl="on")
        template["OPTIONS"] = {
            "sslmode": "verify-full",
            "sslrootcert": str(directory / "tls.crt"),
            "gssencmode": "disable",
        }

    yield certify
    standby.configure(ssl=None, ssl_cert_file=None, ssl_key_file=None)


def test_tls_knows_the_server_by_the_name(
    discover: Discover, names: Dnsmasq, cluster: Cluster, certify: Callable[[str], None]
) -> None:
    """A certificate for the name is accepted at whatever address the server has."""
    certify(NAME)
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    assert visit(Client(), where) == A2
    assert connections[A2].connection.pgconn.ssl_in_use


def test_control_of_tls(
    discover: Discover,
    names: Dnsmasq,
    certify: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that is certified for another name serves nobody."""
    certify("other.test")
    names.lead(SECOND)
    discover()
    wait_until(lambda: f'does not match host name "{NAME}"' in caplog.text, "it to be refused")
    assert serving() == set()


# Processes, threads, settings


SCRIPT = f"""{NO_NEWS}
import os, sys, time
import django
django.setup()
from django.db import connections
from django_replica_router import scope
from django_replica_router.conf import get_config
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from testproject.notes.models import Note

def reads_from(alias):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with scope():
            if Note.objects.all().db == alias:
                return Note.objects.count() == 0
    return False

assert reads_from("{A2}")
connections.close_all()
there, here = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    # What its parent has found it knows; what comes later it finds itself.
    assert find_monitor("default") is None
    assert list(get_config().topology.replicas["default"]) == ["{A2}"]
    ok = reads_from("{A2}")
    os.write(there[1], b".")
    os.read(here[0], 1)
    os._exit(0 if ok and reads_from("{A3}") else 1)
os.read(there[0], 1)
print("ready", flush=True)
sys.stdin.readline()
os.write(here[1], b".")
assert reads_from("{A3}")
_, status = os.waitpid(pid, 0)
assert status == 0, status
print("done")
"""


def test_a_site_and_its_forked_processes_follow_the_name(
    cluster: Cluster, standbys: list[ReplicaServer], names: Dnsmasq
) -> None:
    """A whole process of its own, with no test around it."""
    databases = cluster.django_databases("app")
    del databases["replica2"]
    databases["replica1"].update(HOST=NAME, PORT=str(standbys[0].port))
    entry = {"NAME": NAME, "NAMESERVER": "127.0.0.1", "PORT": names.port, "INTERVAL": 0.2}
    setup = (
        "from tests import patient_settings as s\n"
        f"s.REPLICA_ROUTER = dict(s.REPLICA_ROUTER, DISCOVERY={{'replica1': {entry!r}}})\n"
    )
    names.lead(SECOND)
    with running_program(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", setup + SCRIPT],
        env={**environment(cluster), "TESTPROJECT_DATABASES": json.dumps(databases)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        names.lead(THIRD)
        out, err = process.communicate("go on\n", timeout=TIMEOUT)
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_in_a_test_run_nothing_is_looked_up(
    discover: Discover, names: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There an alias with ``TEST["MIRROR"]`` is the primary's test database."""
    monkeypatch.setattr(discovery, "is_under_test", lambda: True)
    names.lead(SECOND)
    discover()
    assert registry._registry.discoverers == {"default": []}
    assert entries_for("default", get_config()) == {}


def test_other_vendors_have_no_servers(
    discover: Discover, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Only PostgreSQL has replicas; an alias that is none, or of another primary, is passed over."""
    discover()
    assert list(entries_for("default", get_config())) == ["replica1"]
    assert entries_for("elsewhere", get_config()) == {}
    monkeypatch.setattr(connections["replica1"], "vendor", "sqlite")
    assert entries_for("default", get_config()) == {}
    entry = settings.REPLICA_ROUTER["DISCOVERY"]["replica1"]
    settings.REPLICA_ROUTER = {"DISCOVERY": {"default": entry, "nowhere": entry}}
    assert entries_for("default", get_config()) == {}


def test_the_setting_may_change(
    discover: Discover, names: Dnsmasq, cluster: Cluster, template: dict[str, Any]
) -> None:
    """What was found by one name does not count for another, nor without the setting."""
    names.answer("host-record=replicas.test,127.0.0.2", "host-record=others.test,127.0.0.3")
    template["HOST"] = SECOND
    discover()
    wait_until_serving(A2)
    first = the_monitor()
    discover({"NAME": "others.test"})
    wait_until_serving(A3)
    assert the_monitor() is not first
    discover(DISCOVERY=None)
    wait_until_serving("replica1")
    assert get_config().topology.clusters == {"default": {"replica1": 1.0}}


def test_who_asks_amid_a_change_finds_the_same_monitor(
    discover: Discover, names: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that knows the new servers before the monitor does starts no other one."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    monitor, find, follow = the_monitor(), registry._registry.find, the_monitor().follow
    has_looked = threading.Event()
    found: list[Monitor | None] = []

    def find_and_tell(primary: str, config: Config) -> Monitor | None:
        found.append(find(primary, config))
        has_looked.set()
        return found[-1]

    def ask_and_follow(replicas: Sequence[str]) -> None:
        if monitor.known.aliases != tuple(replicas):
            monkeypatch.setattr(registry._registry, "find", find_and_tell)
            asking.start()
            assert has_looked.wait(20.0)
        follow(replicas)

    asking = threading.Thread(target=get_monitor, args=("default",))
    monkeypatch.setattr(monitor, "follow", ask_and_follow)
    names.lead(THIRD)
    wait_until_serving(A3)
    asking.join(20.0)
    assert found == [None, monitor]
    assert the_monitor() is monitor


def test_what_is_told_of_one_that_has_left_is_dropped(
    discover: Discover, names: Dnsmasq, rounds: Callable[[int], None]
) -> None:
    """A request may be held up for longer than it takes a server to leave."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    monitor, poller = the_monitor(), the_monitor()._pollers[A2]
    reading, life = monitor.known.readings[A2], poller.life
    assert life is not None
    names.lead(THIRD)
    wait_until_serving(A3)
    wait_until(lambda: A2 not in monitor.known.readings, "it to have left")
    monitor.report(A2, "a fault")
    monitor.known.lose(A2, ReplicaState.SILENT, "")
    monitor.known.forget(A2)
    monitor.answers.publish_reading(A2, reading)
    monitor.answers.note_replayed(A2, life, 1 << 60)
    assert not monitor.is_same_server(A2, life)
    assert monitor.health.replica(A2).state is ReplicaState.UNKNOWN
    assert monitor.servers.life(A2) is None
    assert A2 not in monitor.known.readings
    assert monitor.remove(A2) is None
    rounds(1)
    databases: Any = connections.settings
    assert A2 in databases.former
    databases.former.clear()  # as where a thousand others have left since
    if hasattr(connections._connections, A2):
        del connections[A2]
    monitor.breaker.fail(A2, 0.0, OSError())
    assert monitor.breaker.open_aliases() == [A2]
    assert refused_replicas(monitor) == set()


def test_settings_of_those_that_are_gone_are_found_and_not_gone_through() -> None:
    """Django looks for a connection of each alias at the begin and at the end of each request."""
    databases = Databases({"default": 1}, {"gone": 2})
    assert [*databases] == ["default"]
    assert "gone" in databases
    assert databases["gone"] == 2
    assert "nowhere" not in databases
    with pytest.raises(KeyError):
        databases["nowhere"]


def test_requests_do_not_notice_that_servers_come_and_go(
    discover: Discover, names: Dnsmasq, cluster: Cluster
) -> None:
    """Threads that read all the time, while the name leads elsewhere and elsewhere."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    errors: list[BaseException] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                with scope():
                    assert Note.objects.count() == 0
                for made in connections.all(initialized_only=True):  # as Django does
                    made.close_if_unusable_or_obsolete()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(4):
            names.lead(*[(SECOND,), (SECOND, THIRD), (THIRD,)][turn % 3])
            wait_until_serving(*[(A2,), (A2, A3), (A3,)][turn % 3])
    finally:
        ended.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert errors == []
