"""System checks: each is raised for its own reason, with what to do about it, and not otherwise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import checks
from django.core.cache import caches
from django.db import connections
from django.test import override_settings

import django_replica_router.checks
from django_replica_router.checks import check_deployment, check_mirrors, check_settings
from django_replica_router.conf import Config
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.packages import NEIGHBOURS
from django_replica_router.routers import ReplicaRouter
from testproject.cluster import Cluster

ROUTER = "django_replica_router.ReplicaRouter"
MINE = "django_replica_router.middleware.ReplicaRouterMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
FILES = "django.core.cache.backends.filebased.FileBasedCache"
DUMMY = "django.core.cache.backends.dummy.DummyCache"
REDIS = "django.core.cache.backends.redis.RedisCache"

HEALTHY: dict[str, Any] = {
    "CACHES": {"default": {"BACKEND": REDIS, "LOCATION": "redis://127.0.0.1:1"}},
    "DATABASE_ROUTERS": [ROUTER],
    "MIDDLEWARE": [MINE, SESSIONS, COMMON],
}
ALIASES = "default, replica1, replica2"
FIRST = f"Put {MINE!r} first in MIDDLEWARE."


def run(router: dict[str, Any] | None = None, **settings: Any) -> list[checks.CheckMessage]:
    """Return what ``check --deploy`` finds in a healthy project with those differences."""
    with override_settings(**(HEALTHY | {"REPLICA_ROUTER": router or {}} | settings)):
        return [*check_settings(), *check_deployment()]


def the_only(messages: list[checks.CheckMessage]) -> tuple[str, str, str | None]:
    """Return level and number, message and hint of the only one."""
    (message,) = messages
    letter = {checks.ERROR: "E", checks.WARNING: "W"}[message.level]
    number = str(message.id).removeprefix("django_replica_router.")
    assert number[0] == letter, "an id begins with the letter of its level"
    return number, message.msg, message.hint


HERE = __name__


class MyMiddleware(ReplicaRouterMiddleware):
    """Stand for a site's own version of the middleware."""


class MySessions(SessionMiddleware):
    """Stand for a site's own version of Django's."""


class MyRouter(ReplicaRouter):
    """Stand for a site's own version of the router."""


def test_healthy_project_is_told_nothing() -> None:
    """Replicas, a router, a first middleware and Redis leave nothing to say."""
    assert run() == []


def test_checks_are_registered() -> None:
    """Django runs the check, and finds it by the app's label."""
    assert check_settings in checks.registry.registry.get_checks()
    with override_settings(**HEALTHY, REPLICA_ROUTER={"NOPE": 1}):
        found = checks.run_checks(apps.get_app_configs(), tags=["django_replica_router"])
    assert [message.id for message in found] == ["django_replica_router.E002"]


@pytest.mark.parametrize("backend", [LOCMEM, FILES])
def test_a_cache_for_development_is_told_of_at_deployment_only(
    backend: str, tmp_path: Path
) -> None:
    """A plain ``check`` is silent on a developer's machine, where one process is all there is."""
    caches = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path)}}

    def found(*, is_deployment: bool) -> list[str]:
        messages = checks.run_checks(
            apps.get_app_configs(),
            tags=["django_replica_router"],
            include_deployment_checks=is_deployment,
        )
        return [str(message.id)[-4:] for message in messages]

    with override_settings(**(HEALTHY | {"CACHES": caches})):
        assert found(is_deployment=False) == []
        assert found(is_deployment=True) == ["W003" if backend == LOCMEM else "W004"]


@pytest.mark.parametrize(
    ("setting", "number", "message", "hint"),
    [
        (
            ["default"],
            "E001",
            "REPLICA_ROUTER should be a dict, not list.",
            "Write REPLICA_ROUTER = {} to use the defaults.",
        ),
        (
            {"WAIT": "1"},
            "E003",
            "REPLICA_ROUTER['WAIT'] should be a number of seconds, 0 or more, not '1'.",
            "Correct the value, or remove the key to use the default.",
        ),
        (
            {"TOKEN_TTL": 5},
            "E006",
            "REPLICA_ROUTER['TOKEN_TTL'] (5 s) should be more than MAX_LAG plus WAIT plus 1 s "
            "(10 s + 0.05 s + 1 s).",
            "A token that expires while a replica may still lag behind it protects nobody: raise "
            "TOKEN_TTL or lower MAX_LAG.",
        ),
        (
            {"CLUSTERS": {"default": ["replica9"]}},
            "E004",
            "REPLICA_ROUTER['CLUSTERS'] names 'replica9', which is not in DATABASES.",
            f"Use one of: {ALIASES}.",
        ),
        (
            {"CLUSTERS": {"nowhere": {"replica1": 1}}},
            "E004",
            "REPLICA_ROUTER['CLUSTERS'] names 'nowhere', which is not in DATABASES.",
            f"Use one of: {ALIASES}.",
        ),
        (
            {"CLUSTERS": {"default": ["default"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'default' a replica of itself.",
            "Name the alias of its primary.",
        ),
        (
            {"CLUSTERS": {"default": ["replica1"], "replica1": ["replica2"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'replica1' a replica of 'default' and a primary as "
            "well.",
            "Name the primary at the head of the chain for every replica of it.",
        ),
        (
            {"CLUSTERS": {"default": ["replica1"], "replica2": ["replica1"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'replica1' a replica of both 'default' and "
            "'replica2'.",
            "Name it under the one primary that it follows.",
        ),
        (
            {"BALANCER": "nowhere.fastest"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'nowhere.fastest', which cannot be imported: No "
            "module named 'nowhere'.",
            "Give the dotted path of a callable.",
        ),
        (
            {"BALANCER": "round-robin"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'round-robin', which cannot be imported: "
            "round-robin doesn't look like a module path.",
            "Give the dotted path of a callable.",
        ),
        (
            {"IDENTITY": "math.pie"},
            "E007",
            "REPLICA_ROUTER['IDENTITY'] names 'math.pie', which cannot be imported: Module "
            '"math" does not define a "pie" attribute/class.',
            "Give the dotted path of a callable.",
        ),
        (
            {"IDENTITY": "math.pi"},
            "E007",
            "REPLICA_ROUTER['IDENTITY'] names 'math.pi', which is not callable.",
            "Give the dotted path of a callable.",
        ),
        (
            {"BALANCER": "math.pi"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'math.pi', which is not callable.",
            "Give the dotted path of a callable.",
        ),
        *(
            (
                {"PRIMARY_ONLY": [label]},
                "E008",
                f"REPLICA_ROUTER['PRIMARY_ONLY'] names {label!r}, which is no app and no model.",
                "Give the label of an app ('auth') or of a model ('auth.User').",
            )
            for label in ("nothing", "auth.Nobody", "nothing.User", "django.contrib.auth", "auth.")
        ),
        (
            {"CACHE": "tokens"},
            "E009",
            "REPLICA_ROUTER['CACHE'] names 'tokens', which is not in CACHES.",
            "Use one of: default.",
        ),
    ],
    ids=repr,
)
def test_setting_that_does_harm_is_an_error(
    setting: Any, number: str, message: str, hint: str
) -> None:
    """A setting that cannot work is an error that names it and says what to do."""
    assert the_only(run(setting)) == (number, message, hint)


def test_unknown_key_is_an_error() -> None:
    """A key that does not exist is an error that lists those that do."""
    number, message, hint = the_only(run({"MAXLAG": 1}))
    assert (number, message) == ("E002", "REPLICA_ROUTER has the unknown key 'MAXLAG'.")
    assert hint is not None
    assert re.fullmatch(r"Use one of: ([A-Z_]+, )+[A-Z_]+\.", hint)
    assert "MAX_LAG" in hint


def test_form_comes_before_meaning() -> None:
    """While the setting cannot be read only that is reported, all of it at once."""
    found = run({"WAIT": -1, "NOPE": 1, "CACHE": "tokens"}, MIDDLEWARE=[], DATABASE_ROUTERS=[])
    assert [str(message.id)[-4:] for message in found] == ["E003", "E002"]


@pytest.mark.parametrize(
    "setting",
    [
        {"TOKEN_TTL": 11.051},
        {"TOKEN_TTL": 6, "MAX_LAG": 4, "WAIT": 0.9},
        {"CLUSTERS": {"default": ["replica1", "replica2"]}},
        {"CLUSTERS": {"default": {"replica2": 0.5}}},
        {"CLUSTERS": {"default": ["replica1", "replica1"]}},
        {"BALANCER": "least_in_flight"},
        {"BALANCER": "random.choice"},
        {"IDENTITY": "os.path.join"},
        {"PRIMARY_ONLY": ["auth", "auth.User", "notes.note"]},
        {"PRIMARY_ONLY": ["AUTH", "Auth.uSER", "NOTES.Note"]},
    ],
    ids=repr,
)
def test_setting_that_works_is_no_error(setting: dict[str, Any]) -> None:
    """Values at the edge of what is allowed, names and paths are left alone."""
    assert run(setting) == []


@pytest.mark.parametrize(("ttl", "is_error"), [(11.05, True), (11.0501, False), (10.5, True)])
def test_token_must_outlive_lag_and_wait(ttl: float, is_error: bool) -> None:
    """A time to live that equals lag, wait and the error of ages is too short, one above is enough."""
    found = [message.id for message in run({"TOKEN_TTL": ttl})]
    assert found == (["django_replica_router.E006"] if is_error else [])


@pytest.mark.parametrize(
    "label", ["auth", "AUTH", "auth.user", "Auth.User", "auth.", "users", "auth.x"]
)
def test_what_the_setting_reserves_is_what_the_check_accepts(label: str) -> None:
    """The check of PRIMARY_ONLY and its reading agree on every label, in any case."""
    ordinary = [model for model in apps.get_models() if not Config().is_primary_only(model)]
    reserves_any = any(Config(PRIMARY_ONLY=[label]).is_primary_only(model) for model in ordinary)
    assert [message.id for message in run({"PRIMARY_ONLY": [label]})] == (
        [] if reserves_any else ["django_replica_router.E008"]
    )


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


@pytest.mark.usefixtures("_sqlite")
def test_other_database_is_told_that_nothing_will_be_routed() -> None:
    """A cluster on another database than PostgreSQL is a warning for that alias only."""
    assert the_only(run({"CLUSTERS": {"default": ["replica1", "lite"]}})) == (
        "W002",
        "The database 'lite' is SQLite: no replica of its cluster will ever serve a read.",
        "Use PostgreSQL with psycopg 3 ('pip install psycopg').",
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
        "Use PostgreSQL with psycopg 3 ('pip install psycopg').",
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


def install(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """Have an app of that label, with the models of the notes."""
    models = list(apps.get_app_config("notes").get_models())
    app = SimpleNamespace(label=label, models=[], get_models=lambda *args: [] if args else models)
    monkeypatch.setitem(apps.app_configs, label, app)  # type: ignore[arg-type]


NOTES = {"PRIMARY_ONLY": ["notes"]}
ALL = {"notes.note": {"ops": "all", "timeout": 9}}
GETS = {"NOTES.*": {"timeout": 9}}


@pytest.mark.parametrize(
    ("number", "app", "router", "more"),
    [
        ("W013", "waffle", {}, {}),
        (None, "waffle", NOTES, {}),
        (None, "waffle", {}, {"WAFFLE_READ_FROM_WRITE_DB": True}),
        ("W014", "cacheops", {}, {"CACHEOPS": ALL}),
        ("W014", "cacheops", {}, {"CACHEOPS": GETS, "CACHEOPS_DEFAULTS": {"ops": "get"}}),
        ("W014", "cacheops", NOTES, {"CACHEOPS": {"*.*": {"ops": "get", "timeout": 9}}}),
        (None, "cacheops", NOTES, {"CACHEOPS": ALL}),
        (None, "cacheops", {}, {"CACHEOPS": GETS}),
        (None, "cacheops", {}, {"CACHEOPS": {"notes.*": None, "*.*": {"timeout": 9}}}),
        (None, "cacheops", {}, {"CACHEOPS": ALL, "CACHEOPS_ENABLED": False}),
        (None, "cacheops", {}, {}),
        ("W015", "cachalot", {}, {}),
        ("W015", "cachalot", {}, {"CACHALOT_DATABASES": ["default", "replica2"]}),
        (None, "cachalot", {}, {"CACHALOT_DATABASES": ["default"]}),
        (None, "cachalot", {}, {"CACHALOT_ENABLED": False}),
        ("W016", "django_tenants", {}, {}),
        (None, "django_tenants", {}, {"EXTRA_SET_TENANT_METHOD_PATH": "shop.set_tenant"}),
        ("W017", "", {}, {"REST_AUTH": {"JWT_AUTH_COOKIE": "jwt"}}),
        ("W017", "", {}, {"SIMPLE_JWT": {"AUTH_COOKIE": "jwt"}}),
        ("W017", "", {}, {"JWT_AUTH_COOKIE": "jwt"}),
        (None, "", {"COOKIE": True}, {"JWT_AUTH_COOKIE": "jwt"}),
        (None, "", {"IDENTITY": "os.path.join"}, {"JWT_AUTH_COOKIE": "jwt"}),
        (None, "", {}, {"SIMPLE_JWT": {}, "REST_AUTH": {}}),
        ("W018", "captcha", {}, {}),
        (None, "captcha", {"COOKIE": True}, {}),
        (None, "captcha", NOTES, {}),
    ],
    ids=repr,
)
def test_package_that_needs_a_setting_is_told_of_until_it_has_it(
    monkeypatch: pytest.MonkeyPatch,
    number: str | None,
    app: str,
    router: dict[str, Any],
    more: dict[str, Any],
) -> None:
    """Where it is installed, and not where the setting is made that mends it."""
    if app:
        assert run(router, **more) == []
        install(monkeypatch, app)
    found = run(router, **more)
    assert [str(message.id)[-4:] for message in found] == ([] if number is None else [number])
    for message in found:
        (neighbour,) = [one for one in NEIGHBOURS if one.code == number]
        assert (message.msg, message.hint) == (neighbour.message, neighbour.hint)
        assert message.level == checks.WARNING


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


def test_missing_router_is_a_warning() -> None:
    """Without the router nothing is routed, and the warning says what to add."""
    assert the_only(run(DATABASE_ROUTERS=["testproject.routing.pin.PinRouter"])) == (
        "W005",
        "The router is not in DATABASE_ROUTERS: nothing is routed.",
        f"Add {ROUTER!r} to DATABASE_ROUTERS.",
    )


@pytest.mark.parametrize(
    "routers",
    [
        ["django_replica_router.routers.ReplicaRouter"],
        [f"{HERE}.MyRouter"],
        [MyRouter()],
        ["testproject.routing.pin.PinRouter", ROUTER],
    ],
    ids=lambda routers: str(routers[0])[:24] + str(len(routers)),
)
def test_router_is_found_by_any_path(routers: list[Any]) -> None:
    """The class's own path, a subclass, an object and any place in the list are all right."""
    assert run(DATABASE_ROUTERS=routers) == []


def test_missing_middleware_is_a_warning() -> None:
    """Without the middleware requests have no scope, and the warning says where it belongs."""
    assert the_only(run(MIDDLEWARE=[SESSIONS, COMMON])) == (
        "W006",
        "The middleware is not in MIDDLEWARE: requests read from the primary only.",
        FIRST,
    )


@pytest.mark.parametrize("sessions", [SESSIONS, f"{HERE}.MySessions"])
def test_middleware_inside_sessions_is_an_error(sessions: str) -> None:
    """Inside SessionMiddleware, or a site's subclass of it, a login would not be remembered."""
    for middleware in (
        [sessions, MINE],
        [COMMON, sessions, MINE],
        [sessions, f"{HERE}.MyMiddleware"],
    ):
        assert the_only(run(MIDDLEWARE=middleware)) == (
            "E011",
            "The middleware is inside SessionMiddleware, which writes after it has finished.",
            FIRST,
        )


def test_middleware_that_is_not_first_is_a_warning() -> None:
    """What stands outside of the middleware is named."""
    assert the_only(run(MIDDLEWARE=[COMMON, MINE, SESSIONS])) == (
        "W007",
        f"The middleware is not first in MIDDLEWARE: what {COMMON!r} reads and writes is outside "
        f"of it.",
        FIRST,
    )


@pytest.mark.parametrize(
    "middleware", [[MINE], (MINE, SESSIONS), [f"{HERE}.MyMiddleware", SESSIONS, "nowhere.Other"]]
)
def test_middleware_that_is_first_is_fine(middleware: Any) -> None:
    """First of a list or tuple, as it is or subclassed, and whatever comes behind."""
    assert run(MIDDLEWARE=middleware) == []


def test_function_in_front_of_the_middleware_is_no_class() -> None:
    """A middleware that is a function, or cannot be imported, is passed by in the search."""
    others = ["testproject.metering.meter_middleware", "nowhere.Other"]
    assert [str(m.id)[-4:] for m in run(MIDDLEWARE=[*others, MINE])] == ["W007"]
    assert [str(m.id)[-4:] for m in run(MIDDLEWARE=others)] == ["W006"]


def test_atomic_requests_of_the_primary_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS on the primary leaves the replicas idle."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert the_only(run()) == (
        "W008",
        "ATOMIC_REQUESTS of 'default' sends every read of every view to the primary.",
        "Turn it off, and use transaction.atomic() where a view writes; or mark views that only "
        "read with @transaction.non_atomic_requests.",
    )


def test_atomic_requests_of_a_replica_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS on a replica costs a transaction for nothing."""
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    assert the_only(run()) == (
        "W009",
        "ATOMIC_REQUESTS of the replica 'replica2' opens a useless transaction for every request.",
        "Remove it from 'replica2'.",
    )


def test_atomic_requests_elsewhere_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of no cluster may have them."""
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    assert run({"CLUSTERS": {"default": ["replica1"]}}) == []


def test_several_faults_are_all_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of different kinds do not hide one another."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    found = run(
        {
            "CLUSTERS": {"default": ["replica1", "replica9"]},
            "TOKEN_TTL": 1,
            "BALANCER": "nowhere.fastest",
            "IDENTITY": "nowhere.identify",
            "PRIMARY_ONLY": ["nothing", "auth", "nobody"],
        },
        CACHES={"default": {"BACKEND": LOCMEM}},
        DATABASE_ROUTERS=[],
        MIDDLEWARE=[],
    )
    assert Counter(str(message.id)[-4:] for message in found) == {
        "E004": 1,
        "E006": 1,
        "E007": 2,
        "E008": 2,
        "W003": 1,
        "W005": 1,
        "W006": 1,
        "W008": 1,
    }


def test_every_id_is_tested_here() -> None:
    """No id can be added to the code without a test above, and no test outlives its id."""
    package = Path(django_replica_router.checks.__file__).parent
    code = "".join((package / name).read_text() for name in ("checks.py", "conf.py", "packages.py"))
    assert set(re.findall(r'"([EW]\d{3})"', code)) == set(
        re.findall(r'"([EW]\d{3})"', Path(__file__).read_text())
    )


def test_one_id_stands_for_one_fault() -> None:
    """No two functions of the checks use one id."""
    code = Path(django_replica_router.checks.__file__).read_text()
    homes: dict[str, set[str]] = {}
    for function in re.split(r"^def ", code, flags=re.MULTILINE)[1:]:
        for number in re.findall(r'"([EW]\d{3})"', function):
            homes.setdefault(number, set()).add(function.partition("(")[0])
    assert {number: names for number, names in homes.items() if len(names) > 1} == {}
