"""Sessions that a cache keeps as they were read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.contrib.sessions.backends.cached_db import KEY_PREFIX
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import conf
from django_replica_router.conf import get_config
from django_replica_router.replicas.registry import find_monitor
from testproject.cluster import Cluster
from tests.conftest import (
    PATIENT,
    stand_still,
    wait_until,
    wait_until_reachable,
    wait_until_routed,
)
from tests.controls import fail_without
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

CACHED_DB = "django.contrib.sessions.backends.cached_db"


def is_signed_in(request: HttpRequest) -> bool:
    """Tell whether the session still names its user."""
    return bool(request.user.is_authenticated)


def drop_from_cache(client: Client) -> None:
    """Have the cache miss the session, as one that was full does."""
    key = client.cookies[django_settings.SESSION_COOKIE_NAME].value
    assert caches["default"].delete(KEY_PREFIX + key)


def test_a_deleted_session_does_not_come_back_into_the_cache(
    ann: User, cluster: Cluster, settings: Any
) -> None:
    """Within the lag a replica still shows its row, which the cache would keep for two weeks."""
    settings.SESSION_ENGINE = CACHED_DB
    client = sign_in(ann)
    stand_still(cluster)
    drop_from_cache(client)
    # By staff, past this session's own store: its user's token does not know of it.
    cluster.primary.execute("DELETE FROM django_session", dbname="app")
    assert visit(client, is_signed_in) is False
    for replica in cluster.replicas:
        replica.resume()
    assert visit(client, is_signed_in) is False


def test_a_session_that_the_cache_misses_is_read_from_the_primary(
    ann: User, cluster: Cluster, settings: Any, served: Served
) -> None:
    """And the user as before from a replica."""
    settings.SESSION_ENGINE = CACHED_DB
    client = sign_in(ann)
    stand_still(cluster)
    visit(client, is_signed_in)
    drop_from_cache(client)
    served.clear()
    assert visit(client, is_signed_in) is True
    assert served.only_primary("django_session")
    assert served.only_replicas("auth_user")


def test_with_the_primary_down_a_session_may_come_from_a_stand_in(
    ann: User, healed: Cluster, settings: Any
) -> None:
    """As the docs tell of PRIMARY_DOWN: also one whose deletion that has not replayed, and to stay."""
    settings.SESSION_ENGINE = CACHED_DB
    client = sign_in(ann)
    stand_still(healed)
    drop_from_cache(client)
    healed.primary.execute("DELETE FROM django_session", dbname="app")
    client.raise_request_exception = False
    healed.primary.stop()
    try:
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
        assert visit(client, is_signed_in).status_code == 500
        settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_DOWN": "replicas"}
        assert visit(client, is_signed_in) is True
    finally:
        healed.primary.start()
        wait_until_reachable("default")
    for replica in healed.replicas:
        replica.resume()
    connections["default"].close()
    wait_until_routed()
    assert visit(client, is_signed_in) is True


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (CACHED_DB, True),
        ("tests.test_cached_sessions", True),
        ("django.contrib.sessions.backends.db", False),
        ("django.contrib.sessions.backends.cache", False),
        ("django.contrib.sessions.backends.signed_cookies", False),
        ("no.such.engine", False),
    ],
)
def test_sessions_are_reserved_where_the_engine_caches(
    engine: str, expected: bool, settings: Any
) -> None:
    """Also where the engine is the site's own, and as soon as the setting changes."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db" if expected else CACHED_DB
    assert get_config().is_primary_only(Session) is not expected
    settings.SESSION_ENGINE = engine
    assert get_config().is_primary_only(Session) is expected
    assert get_config().is_primary_only(User) is False


def test_the_test_of_the_rule_fails_without_the_rule(request: pytest.FixtureRequest) -> None:
    """Negative control: the session is revived."""

    def take_out(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(conf, "_is_kept_in_a_cache", lambda model: False)

    test: Callable[..., None] = test_a_deleted_session_does_not_come_back_into_the_cache
    fail_without(take_out, test, {}, request)


def __getattr__(name: str) -> Any:
    """Be a session engine of a site's own, which names its store when asked."""
    if name != "SessionStore":
        raise AttributeError(name)
    from django.contrib.sessions.backends import cached_db

    return type("SessionStore", (cached_db.SessionStore,), {})
