"""System checks of the cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.cache import caches
from django.test import override_settings

from django_replica_router.checks import check_deployment
from django_replica_router.stores.store import RedisStore
from testproject.cluster import Cluster
from tests.checking import FILES, HEALTHY, LOCMEM, run, the_only

DUMMY = "django.core.cache.backends.dummy.DummyCache"


@pytest.mark.parametrize(
    ("policy", "limit", "is_told"),
    [
        ("allkeys-lru", "100mb", True),
        ("volatile-lru", "100mb", True),
        ("noeviction", "100mb", False),
        ("allkeys-lru", "0", False),
    ],
)
def test_a_cache_that_drops_keys_is_told_before_deployment(
    cluster: Cluster, policy: str, limit: str, is_told: bool
) -> None:
    """The server says what it does when its memory is full; without a limit it never is."""
    client = caches["default"].client.get_client(write=True)  # type: ignore[attr-defined]
    before = {name: client.config_get(name)[name] for name in ("maxmemory-policy", "maxmemory")}
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", limit)
    try:
        found = check_deployment()
    finally:
        for name, value in before.items():
            client.config_set(name, value)
    if not is_told:
        assert found == []
        return
    assert the_only(found) == (
        "W010",
        f"The server of the cache 'default' drops keys when its memory is full (maxmemory-policy "
        f"{policy}): a reader whose record is missing costs the primary a question, and is served "
        f"by replicas once they have all that it has then.",
        "Set maxmemory-policy noeviction, or give the tokens a server of their own that has it: "
        "who has no record there has written nothing.",
    )


def test_a_cache_that_refuses_is_told_before_deployment(cluster: Cluster) -> None:
    """What each request would meet, and serve from the primary, is an error of the check."""
    assert cluster.cache is not None
    assert check_deployment() == []
    cluster.cache.command("ACL", "SETUSER", "default", "-evalsha")
    try:
        (message,) = check_deployment()
    finally:
        cluster.cache.command("ACL", "SETUSER", "default", "+evalsha")
    assert the_only([message])[0] == "E012"
    assert "evalsha" in message.msg


def test_without_the_trial_nobody_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the check says nothing, and each request meets the refusal."""
    monkeypatch.setattr(RedisStore, "find_refusal", lambda self: None)
    with pytest.raises(ValueError, match="not enough values"):
        test_a_cache_that_refuses_is_told_before_deployment(cluster)


@pytest.mark.parametrize(
    "differences",
    [
        {},  # Redis where nobody listens
        {"CACHES": {"default": {"BACKEND": LOCMEM}}},
        {"REPLICA_ROUTER": {"NOPE": 1}},
        {"REPLICA_ROUTER": {"CACHE": "nowhere"}},
    ],
    ids=repr,
)
def test_a_cache_that_does_not_tell_is_no_matter_of_deployment(differences: dict[str, Any]) -> None:
    """What cannot be asked is no finding; what is wrong with the setting, another check tells."""
    with override_settings(**(HEALTHY | differences)):
        found = {message.id for message in check_deployment()}
    assert found <= {"django_replica_router.W003"}  # which is of another kind of cache


def test_only_a_deployment_asks_the_server() -> None:
    """An ordinary check, as before each test run, sends no command to the cache."""
    registry = checks.registry.registry
    assert check_deployment not in registry.get_checks()
    assert check_deployment in registry.get_checks(include_deployment_checks=True)


@pytest.mark.parametrize("backend", [LOCMEM, DUMMY])
def test_cache_of_one_process_is_a_warning(backend: str) -> None:
    """A cache that other processes do not see protects only users of one process."""
    assert the_only(run(CACHES={"default": {"BACKEND": backend}})) == (
        "W003",
        f"The cache 'default' ({backend}) is not shared between processes: what a user writes in "
        f"one is not known in another.",
        "Use Redis or Valkey in production, as with django-redis.",
    )


def test_cache_without_an_atomic_merge_is_a_warning(tmp_path: Path) -> None:
    """A shared cache which can lose one of two tokens is told apart from one which cannot."""
    caches = {
        "default": HEALTHY["CACHES"]["default"],
        "tokens": {"BACKEND": FILES, "LOCATION": tmp_path},
    }
    assert the_only(run({"CACHE": "tokens"}, CACHES=caches)) == (
        "W004",
        f"The cache 'tokens' ({FILES}) has no atomic merge: of two tokens of one user that are "
        f"stored at the same moment, the higher one may be lost.",
        "Use Redis or Valkey, as with django-redis.",
    )


def test_only_the_cache_of_the_tokens_counts() -> None:
    """Other caches of the project may be of any kind."""
    caches = {"default": {"BACKEND": DUMMY}, "tokens": HEALTHY["CACHES"]["default"]}
    assert run({"CACHE": "tokens"}, CACHES=caches) == []


def test_cache_that_cannot_be_made_is_an_error() -> None:
    """A backend that does not exist is an error with the reason in it."""
    number, message, hint = the_only(run(CACHES={"default": {"BACKEND": "nowhere.Cache"}}))
    assert (number, hint) == ("E010", "Mend CACHES.")
    assert re.fullmatch(
        r"The cache 'default' cannot be used: The token store could not be opened: "
        r"Could not find backend 'nowhere\.Cache': No module named 'nowhere'",
        message,
    )
