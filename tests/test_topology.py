"""The topology: which aliases are replicas of which primary, by the settings and by what was found by a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_replica_router import conf
from django_replica_router.conf import Config, Topology, get_config
from django_replica_router.values.topology import Found

POSTGRES = "django.db.backends.postgresql"


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that describes databases by alias, with what each one mirrors."""

    def describe(mirrors: dict[str, str | None]) -> None:
        described = connections.configure_settings(
            {
                alias: {"ENGINE": POSTGRES, "TEST": {"MIRROR": primary} if primary else {}}
                for alias, primary in mirrors.items()
            }
        )
        monkeypatch.setitem(connections.__dict__, "settings", described)
        conf._forget(setting="DATABASES")

    yield describe
    monkeypatch.undo()
    conf._forget(setting="DATABASES")


def test_mirrors_are_the_replicas(databases: Any) -> None:
    """An alias whose TEST["MIRROR"] names another is its replica; several primaries come for free."""
    databases(
        {
            "default": None,
            "r1": "default",
            "analytics": None,
            "a1": "analytics",
            "r2": "default",
            "legacy": None,
        }
    )
    topology = Config().topology
    assert topology.clusters == {
        "default": {"r1": 1.0, "r2": 1.0},
        "analytics": {"a1": 1.0},
    }
    assert topology.primary_of == {
        "default": "default",
        "r1": "default",
        "r2": "default",
        "analytics": "analytics",
        "a1": "analytics",
    }
    assert [alias for alias in connections if topology.is_replica(alias)] == ["r1", "a1", "r2"]


def test_no_mirror_is_no_cluster(databases: Any) -> None:
    """Databases without replicas are none of the package's business."""
    databases({"default": None, "other": None})
    topology = Config().topology
    assert topology.clusters == {}
    assert topology.primary_of == {}
    assert not topology.is_replica("default")


def test_clusters_replace_mirrors(databases: Any) -> None:
    """Where CLUSTERS is set, TEST["MIRROR"] does not count."""
    databases({"default": None, "r1": "default", "r2": None})
    topology = Config(CLUSTERS={"default": ["r2"]}).topology
    assert topology.clusters == {"default": {"r2": 1.0}}
    assert topology.primary_of == {"default": "default", "r2": "default"}


@pytest.mark.parametrize(
    ("described", "clusters"),
    [
        ({"p": ["a", "b"]}, {"p": {"a": 1.0, "b": 1.0}}),
        ({"p": ("a", "a")}, {"p": {"a": 1.0}}),
        ({"p": {"a": 2, "b": 0.5}}, {"p": {"a": 2, "b": 0.5}}),
        ({"p": ["a"], "q": {"b": 3}}, {"p": {"a": 1.0}, "q": {"b": 3}}),
        ({"p": []}, {"p": {}}),
        ({}, {}),
    ],
    ids=repr,
)
def test_clusters_are_lists_or_weights(described: Any, clusters: Any) -> None:
    """A list gives each replica the weight 1, a dict the weights that it names."""
    topology = Config(CLUSTERS=described).topology
    assert topology.clusters == clusters
    assert set(topology.primary_of) == {
        *clusters,
        *(alias for c in clusters.values() for alias in c),
    }


def test_order_of_replicas_is_that_of_the_setting() -> None:
    """The order in which replicas were listed is kept."""
    topology = Config(CLUSTERS={"p": ["c", "a", "b"]}).topology
    assert list(topology.clusters["p"]) == ["c", "a", "b"]


def test_topology_does_not_share_the_callers_dict() -> None:
    """Changing the setting's dict afterwards changes no topology, and nobody can change it."""
    weights = {"a": 1.0}
    topology = Config(CLUSTERS={"p": weights}).topology
    weights["b"] = 2.0
    assert topology.clusters == {"p": {"a": 1.0}}
    with pytest.raises(TypeError, match="does not support item assignment"):
        topology.clusters["q"] = {}  # type: ignore[index]
    with pytest.raises(TypeError, match="does not support item assignment"):
        topology.primary_of["q"] = "p"  # type: ignore[index]


def test_roles_of_aliases() -> None:
    """A replica is one, a primary and a stranger are none."""
    topology = Topology({"p": {"a": 1.0}})
    assert topology.is_replica("a")
    assert not topology.is_replica("p")
    assert not topology.is_replica("stranger")


def test_topology_follows_the_databases(databases: Any) -> None:
    """A change of DATABASES in a test is seen, although REPLICA_ROUTER is the same object."""
    databases({"default": None, "r1": "default"})
    assert set(get_config().topology.primary_of) == {"default", "r1"}
    databases({"default": None, "r2": "default"})
    assert set(get_config().topology.primary_of) == {"default", "r2"}


def test_topology_of_the_test_project() -> None:
    """The test project names its two replicas by TEST["MIRROR"]."""
    assert get_config().topology.clusters == {"default": {"replica1": 1.0, "replica2": 1.0}}


# What was found by a name


ENTRY = {"NAME": "replicas.test"}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what the test has found."""
    monkeypatch.setattr(conf.parsed, "found", {})
    yield
    conf._forget(setting="REPLICA_ROUTER")


@pytest.mark.usefixtures("found")
def test_servers_that_were_found_take_the_place_of_their_alias() -> None:
    """With its weight, in its place; those that are gone, and the alias itself, stay replicas."""
    clusters = {"p": {"a": 2, "r": 3, "z": 1}, "q": ["s"]}
    with override_settings(REPLICA_ROUTER={"CLUSTERS": clusters, "DISCOVERY": {"r": ENTRY}}):
        conf.note_found("r", Found(ENTRY, ("r@1", "r@2"), ("r@0",)))
        topology = get_config().topology
        assert list(topology.clusters["p"].items()) == [("a", 2), ("r@1", 3), ("r@2", 3), ("z", 1)]
        assert topology.replicas == {"p": ("a", "r@1", "r@2", "z"), "q": ("s",)}
        assert topology.members["p"] == ("a", "r@1", "r@2", "z", "r", "r@0")
        assert {topology.primary_of[alias] for alias in topology.members["p"]} == {"p"}
        assert all(map(topology.is_replica, topology.members["p"]))
        assert topology.settling == {}
        assert conf.find_found("r") == Found(ENTRY, ("r@1", "r@2"), ("r@0",))
        conf.note_found("r", Found(ENTRY, ("r@1", "r@2"), ("r@0",)))
        assert get_config().topology is topology
        conf.note_found("r", Found(ENTRY, ("r@3",), (), ("r@1", "r@2"), 7.0))
        assert get_config().topology.settling == {"p": ({"a": 2, "r@1": 3, "r@2": 3, "z": 1}, 7.0)}


@pytest.mark.usefixtures("found")
def test_what_was_found_by_another_name_does_not_count() -> None:
    """Nor where the setting is gone; it counts again with settings that are read anew."""
    setting = {"CLUSTERS": {"p": ["r"]}, "DISCOVERY": {"r": ENTRY}}
    with override_settings(REPLICA_ROUTER=setting):
        conf.note_found("r", Found(ENTRY, ("r@1",)))
        assert get_config().topology.clusters == {"p": {"r@1": 1.0}}
    for other in (None, {}, {"r": {"NAME": "other.test"}}, {"s": ENTRY}):
        with override_settings(REPLICA_ROUTER={**setting, "DISCOVERY": other}):
            assert get_config().topology.clusters == {"p": {"r": 1.0}}
    with override_settings(REPLICA_ROUTER={**setting, "WAIT": 0}):
        assert get_config().topology.clusters == {"p": {"r@1": 1.0}}
        # One that was worked out while it changed is replaced at the next look-up.
        get_config().__dict__["topology"] = Topology({"p": {"r": 1.0}})
        conf.note_found("r", Found(ENTRY, ("r@1",)))
        assert get_config().topology.clusters == {"p": {"r@1": 1.0}}
