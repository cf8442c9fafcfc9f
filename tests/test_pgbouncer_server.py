"""The PgBouncer of the tests itself."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from django.db import connections

from django_replica_router.replicas import sights
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.sql import answering, opening, standby
from testproject.cluster import Cluster, PgBouncerServer
from testproject.cluster.binaries import PGBOUNCER_VARIABLE
from testproject.cluster.pgbouncer import answers
from testproject.notes.models import Note
from tests.conftest import POOLER, impatient, wait_until
from tests.pooled import mode, poolers, read_ten_times, require_pgbouncer, transaction_poolers  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# The server of the tests itself


def test_a_pooler_is_told_from_a_server(
    poolers: dict[str, PgBouncerServer], cluster: Cluster
) -> None:
    """By the process id, which it makes up."""
    with opening.connect("replica1", 5.0) as raw:
        through = answering.identify(raw)
    with cluster.replicas[0].connect() as raw:
        direct = answering.identify(raw)
    assert through.is_pooled
    assert not direct.is_pooled
    assert through.life == direct.life
    assert through.in_recovery


def test_a_healed_cluster_is_reached_at_once(
    transaction_poolers: dict[str, PgBouncerServer], healed: Cluster
) -> None:
    """A pooler that has met a dead server refuses everybody for a while, also once it is back."""
    replica = healed.replicas[0]
    pooler = transaction_poolers[replica.name]

    def ask() -> None:
        with psycopg.connect(
            host=pooler.host, port=pooler.port, user="postgres", dbname="app"
        ) as raw:
            raw.execute("SELECT 1")

    ask()
    replica.kill()
    with impatient(healed, replica.name), pytest.raises(psycopg.OperationalError):
        ask()
    healed.heal()
    ask()


def test_a_healed_cluster_has_poolers_as_they_were(
    transaction_poolers: dict[str, PgBouncerServer], healed: Cluster
) -> None:
    """What a test has set there is undone, also what keeps everybody out."""
    pooler = transaction_poolers[healed.replicas[0].name]
    with psycopg.connect(host=pooler.host, port=pooler.port, user="postgres", dbname="app"):
        pooler.ask("SET max_client_conn = 1")
        healed.heal()
    known = {row["key"]: row["value"] for row in pooler.ask("SHOW CONFIG")}
    assert known["max_client_conn"] == "1000"


def test_the_monitor_prepares_nothing(
    transaction_poolers: dict[str, PgBouncerServer], cluster: Cluster
) -> None:
    """A statement that one server connection has prepared is unknown to the next one."""
    monitor = find_monitor("default")
    assert monitor is not None
    raw = monitor._pollers["replica1"]._connection
    assert raw is not None
    seen = monitor.known.readings["replica1"].read_at
    wait_until(lambda: monitor.known.readings["replica1"].read_at > seen, "another look")
    for _ in range(20):
        standby.ask_replica(raw)
    ((prepared,),) = raw.execute(
        "SELECT count(*) FROM pg_prepared_statements", prepare=False
    ).fetchall()
    assert prepared == 0


def test_a_missing_pgbouncer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the name of the variable that mends it."""
    monkeypatch.setenv(PGBOUNCER_VARIABLE, str(tmp_path / "nothing"))
    with (
        pytest.raises(Exception, match=PGBOUNCER_VARIABLE),
        Cluster(replicas=0, cache=False, pooler="session"),
    ):
        pass


def test_an_unknown_pool_mode_is_told() -> None:
    """Statement pooling knows no transactions, and Django needs them."""
    require_pgbouncer()
    with (
        pytest.raises(Exception, match="pool mode 'statement'"),
        Cluster(replicas=0, cache=False, pooler="statement"),
    ):
        pass


def test_a_pooler_that_is_put_in_between_is_noticed(
    cluster: Cluster, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new connection to a server that had none asks along who answers: that tells of a pooler, too."""
    if POOLER:
        pytest.skip("there is one already")
    require_pgbouncer()
    alias = read_ten_times()
    connections[alias].close()
    assert alias in sights.led_straight
    servers = {replica.name: replica.port for replica in cluster.replicas}
    ports = cluster.lead_poolers("transaction", servers)
    settings = connections[alias].settings_dict
    before = settings["PORT"]
    try:
        wait_until(lambda: answers(ports[alias], settings["NAME"], timeout=2), "the pooler")
        settings["PORT"] = ports[alias]
        assert read_ten_times() == alias
        assert sights.is_pooled(connections[alias])
        assert alias not in sights.led_straight
    finally:
        settings["PORT"] = before
        connections[alias].close()
        cluster.remove_poolers()
        stop_monitors()
