"""System checks of databases, replicas and their drivers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import checks
from django.db import connections
from django.test import override_settings

import django_replica_router.checks
from django_replica_router.checks import check_mirrors
from tests.checking import ALIASES, DISCOVERY, run, the_only


def mirror(monkeypatch: pytest.MonkeyPatch, alias: str, primary: str | None) -> None:
    """Let an alias of DATABASES mirror another one during the test."""
    monkeypatch.setitem(connections.settings[alias]["TEST"], "MIRROR", primary)


def test_mirror_of_an_unknown_alias_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names TEST["MIRROR"] where that is what describes the cluster."""
    mirror(monkeypatch, "replica1", "defualt")
    assert the_only(run()) == (
        "E004",
        "TEST['MIRROR'] names 'defualt', which is not in DATABASES.",
        f"Use one of: {ALIASES}.",
    )


def test_mirror_of_a_mirror_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade has to be described by its head."""
    mirror(monkeypatch, "replica2", "replica1")
    assert the_only(run()) == (
        "E005",
        "TEST['MIRROR'] makes 'replica1' a replica of 'default' and a primary as well.",
        "Name the primary at the head of the chain for every replica of it.",
    )


def test_mirror_by_name_only_is_told_of_in_a_test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's test runner checks the databases that its tests use; a real standby is no mirror."""
    for alias in ("default", "replica1"):
        for part in ("HOST", "NAME", "PORT"):
            monkeypatch.setitem(connections[alias].settings_dict, part, "5")
    assert check_mirrors(databases=["default", "replica1"]) == []
    monkeypatch.setitem(connections["replica1"].settings_dict, "HOST", "db2")
    monkeypatch.setitem(connections["replica1"].settings_dict, "PORT", "6")
    assert the_only(check_mirrors(databases=["default", "replica1"])) == (
        "W011",
        "In this test run 'replica1' is not the test database of 'default': it has another HOST and "
        "PORT. What a test reads from it by name is no row of the test.",
        "TEST['MIRROR'] copies only the NAME: give 'replica1' the HOST and PORT of 'default' in the "
        "settings of your tests, or call django_replica_router.testing.point_mirrors_to_primaries() "
        "before them.",
    )


def test_production_is_told_nothing_of_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a replica has an address of its own, and an ordinary check names no database."""
    monkeypatch.setitem(connections["replica1"].settings_dict, "HOST", "db2")
    assert check_mirrors in checks.registry.registry.get_checks()
    assert check_mirrors() == []
    with override_settings(REPLICA_ROUTER={"NOPE": 1}):
        assert check_mirrors(databases=["replica1"]) == []
    monkeypatch.setattr(django_replica_router.checks, "is_under_test", lambda: False)
    assert check_mirrors(databases=["default", "replica1"]) == []


@pytest.mark.parametrize("setting", [{}, {"CLUSTERS": {}}, {"CLUSTERS": {"default": []}}], ids=repr)
def test_project_without_replicas_is_told_so(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    """Without any replica there is a warning that says how one is named."""
    mirror(monkeypatch, "replica1", None)
    mirror(monkeypatch, "replica2", None)
    assert the_only(run(setting)) == (
        "W001",
        "No replica is configured: every read goes to the primary.",
        "Set TEST = {'MIRROR': 'default'} on the alias of a replica in DATABASES.",
    )


@pytest.fixture
def _sqlite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A database "lite" that is no PostgreSQL."""
    lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    described = connections.configure_settings({"default": {}, "lite": lite})["lite"]
    monkeypatch.setitem(connections.settings, "lite", described)
    yield
    if hasattr(connections._connections, "lite"):
        del connections["lite"]


def test_a_name_for_a_replica_is_fine() -> None:
    """Whether it can be resolved is not asked."""
    assert run(DISCOVERY) == []


@pytest.mark.parametrize(("key", "value"), [("HOST", "one,two"), ("PORT", "5432,5433")])
def test_a_list_of_hosts_is_not_found_by_a_name(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    """The driver wants as many addresses as hosts."""
    monkeypatch.setitem(connections.settings["replica1"], key, value)
    assert the_only(run(DISCOVERY)) == (
        "E013",
        "REPLICA_ROUTER['DISCOVERY'] names 'replica1', whose HOST or PORT lists several.",
        "Give it one HOST: each server that is found is reached at its own address.",
    )


def test_without_dnspython_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    assert the_only(run(DISCOVERY)) == (
        "E014",
        "REPLICA_ROUTER['DISCOVERY'] needs dnspython, which is not installed.",
        "Run 'pip install \"django-replica-router[discovery]\"'.",
    )


@pytest.mark.usefixtures("_sqlite")
def test_other_database_is_told_that_nothing_will_be_routed() -> None:
    """A cluster on another database than PostgreSQL is a warning for that alias only."""
    assert the_only(run({"CLUSTERS": {"default": ["replica1", "lite"]}})) == (
        "W002",
        "The database 'lite' is SQLite: no replica of its cluster will ever serve a read.",
        "Use PostgreSQL with psycopg 3 ('pip install \"psycopg[binary]\"').",
    )


@pytest.mark.usefixtures("_sqlite")
def test_other_database_outside_all_clusters_is_fine() -> None:
    """A database that belongs to no cluster may be of any kind."""
    assert run() == []


def test_older_driver_is_told_that_nothing_will_be_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection through psycopg2 is a warning that names the driver."""
    monkeypatch.setattr(
        connections["replica1"], "Database", SimpleNamespace(__name__="psycopg2"), raising=False
    )
    assert the_only(run()) == (
        "W002",
        "The database 'replica1' uses the driver psycopg2: no replica of its cluster will ever "
        "serve a read.",
        "Use PostgreSQL with psycopg 3 ('pip install \"psycopg[binary]\"').",
    )


def wrapper_of(package: str) -> Any:
    """Return a connection as a package of another pool would make it."""
    mine = connections["replica1"]
    kind = type("DatabaseWrapper", (type(mine),), {"__module__": f"{package}.backends.base"})
    return type("DatabaseWrapper", (kind,), {})(mine.settings_dict, "replica1")


@pytest.mark.parametrize("package", ["dj_db_conn_pool", "django_db_geventpool"])
def test_pool_of_another_package_is_told_that_nothing_will_be_routed(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a site's own engine is made of it."""
    mine, other = connections["replica1"], wrapper_of(package)
    connections["replica1"] = other
    try:
        found = run()
    finally:
        connections["replica1"] = mine
    assert the_only(found) == (
        "W012",
        f"The database 'replica1' takes its connections from {package}, which hides the driver's "
        "own: no replica of its cluster will ever serve a read.",
        "Use Django's own engine, with psycopg's pool: OPTIONS = {'pool': True} ('pip install "
        "psycopg[pool]').",
    )
