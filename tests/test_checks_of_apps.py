"""System checks of packages, routers, middleware, transactions and sessions."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib.sessions.middleware import SessionMiddleware
from django.core import checks
from django.db import connections
from psycopg import IsolationLevel

from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.packages import NEIGHBOURS
from django_replica_router.routers import ReplicaRouter
from tests.checking import COMMON, MINE, NOTES, ROUTER, SESSIONS, install, run, the_only

FIRST = f"Put {MINE!r} first in MIDDLEWARE."

HERE = __name__


class MyMiddleware(ReplicaRouterMiddleware):
    """Stand for a site's own version of the middleware."""


class MySessions(SessionMiddleware):
    """Stand for a site's own version of Django's."""


class MyRouter(ReplicaRouter):
    """Stand for a site's own version of the router."""


CONSTANCE = {
    "CONSTANCE_BACKEND": "constance.backends.database.DatabaseBackend",
    "CONSTANCE_DATABASE_CACHE_BACKEND": "default",
}
ALL = {"notes.note": {"ops": "all", "timeout": 9}}
IMMEDIATE = {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}
OSCAR = {"OSCAR_BASKET_COOKIE_OPEN": "oscar_open_basket"}
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
        ("W025", "debug_toolbar", {}, {}),
        (None, "debug_toolbar", NOTES, {}),
        ("W026", "constance", {}, CONSTANCE),
        (None, "constance", NOTES, CONSTANCE),
        (None, "constance", {}, {**CONSTANCE, "CONSTANCE_DATABASE_CACHE_BACKEND": None}),
        (
            None,
            "constance",
            {},
            {**CONSTANCE, "CONSTANCE_BACKEND": "constance.backends.redisd.RedisBackend"},
        ),
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
        ("W020", "", {}, {"CELERY_BROKER_URL": "redis://127.0.0.1/0"}),
        ("W021", "", {}, {"TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}}),
        (None, "", {}, {"TASKS": IMMEDIATE}),
        ("W022", "basket", {}, OSCAR),
        (None, "basket", {"COOKIE": True}, OSCAR),
        (None, "basket", NOTES, OSCAR),
        (None, "basket", {}, {}),
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


@pytest.mark.parametrize(
    ("app", "more"),
    [
        ("celery", {"CELERY_BROKER_URL": "redis://127.0.0.1/0"}),
        ("django_tasks", {"TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}}),
    ],
)
def test_tasks_that_carry_tokens_are_not_told_of(
    monkeypatch: pytest.MonkeyPatch, app: str, more: dict[str, Any]
) -> None:
    """Where the app is installed that carries them."""
    name = f"django_replica_router.contrib.{app}"
    monkeypatch.setattr(apps, "is_installed", lambda wanted: wanted == name)
    assert run({}, **more) == []


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


def test_what_only_looks_may_stand_in_front() -> None:
    """The package's own observers; anything else is named behind them as well."""
    observers = [
        "django_replica_router.contrib.server_timing.ServerTimingMiddleware",
        "django_replica_router.contrib.sqlcommenter.SqlCommenterMiddleware",
        "django_replica_router.contrib.opentelemetry.spans.ReplicaSpanMiddleware",
    ]
    assert run(MIDDLEWARE=[*observers, MINE, SESSIONS]) == []
    (found,) = run(MIDDLEWARE=[*observers, COMMON, MINE, SESSIONS])
    assert repr(COMMON) in found.msg


def test_function_in_front_of_the_middleware_is_no_class() -> None:
    """A middleware that is a function, or cannot be imported, is passed by in the search."""
    others = ["testproject.metering.meter_middleware", "nowhere.Other"]
    assert [str(m.id)[-4:] for m in run(MIDDLEWARE=[*others, MINE])] == ["W007"]
    assert [str(m.id)[-4:] for m in run(MIDDLEWARE=others)] == ["W006"]


@pytest.mark.parametrize("level", [None, IsolationLevel.READ_COMMITTED])
def test_atomic_requests_of_the_primary_are_fine(
    monkeypatch: pytest.MonkeyPatch, level: IsolationLevel | None
) -> None:
    """Their reads go where they go without."""
    database = connections.settings["default"]
    monkeypatch.setitem(database, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(database, "OPTIONS", {"isolation_level": level} if level else {})
    assert run() == []


def test_atomic_requests_above_read_committed_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They leave the replicas idle."""
    database = connections.settings["default"]
    monkeypatch.setitem(database, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(database, "OPTIONS", {"isolation_level": IsolationLevel.REPEATABLE_READ})
    assert the_only(run()) == (
        "W008",
        "ATOMIC_REQUESTS of 'default', with an isolation level above READ COMMITTED, keeps every read "
        "of every view on the primary.",
        "Leave the level at READ COMMITTED, and set a higher one in the transactions that need it; or "
        "mark views that only read with @transaction.non_atomic_requests.",
    )


def test_atomic_requests_of_a_replica_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS on a replica is there by mistake."""
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    assert the_only(run()) == (
        "W009",
        "ATOMIC_REQUESTS of the replica 'replica2' means nothing: no view needs a transaction there, "
        "and none is opened.",
        "Remove it from 'replica2'.",
    )


def test_atomic_requests_elsewhere_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of no cluster may have them."""
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    assert run({"CLUSTERS": {"default": ["replica1"]}}) == []


SAVED = {"SESSION_SAVE_EVERY_REQUEST": True}
BACKENDS = "django.contrib.sessions.backends"


def test_sessions_that_are_saved_in_every_request_are_a_warning() -> None:
    """Each write sends its reader to the primary for as long as the replicas lag."""
    assert the_only(run(**SAVED)) == (
        "W019",
        "SESSION_SAVE_EVERY_REQUEST writes a row of the database in every request: who was here a "
        "moment ago reads from the primary.",
        "Add 'sessions' to REPLICA_ROUTER['PRIMARY_ONLY']: then only sessions are read there, and "
        "writing them binds nobody.",
    )


@pytest.mark.parametrize(
    ("router", "more", "is_told"),
    [
        ({"PRIMARY_ONLY": ["sessions"]}, SAVED, False),
        ({"PRIMARY_ONLY": ["sessions.Session"]}, SAVED, False),
        # They would be missing on a replica, and their users logged out.
        ({"IGNORED_WRITES": ["sessions"]}, SAVED, True),
        ({}, {}, False),
        ({}, {**SAVED, "SESSION_ENGINE": f"{BACKENDS}.cached_db"}, False),
        ({}, {**SAVED, "SESSION_ENGINE": f"{BACKENDS}.cache"}, False),
        ({}, {**SAVED, "SESSION_ENGINE": f"{BACKENDS}.signed_cookies"}, False),
        ({}, {**SAVED, "SESSION_ENGINE": "no.such.engine"}, False),
        ({"CLUSTERS": {"default": []}}, SAVED, False),
    ],
)
def test_sessions_elsewhere_or_listed_are_fine(
    router: dict[str, Any], more: dict[str, Any], is_told: bool
) -> None:
    """Or kept in a cache, or saved where they have changed only, or with no replica there."""
    found = [str(message.id)[-4:] for message in run(router, **more)]
    assert ("W019" in found) is is_told


class SessionStore:
    """Stand for an engine whose app is not installed."""

    @classmethod
    def get_model_class(cls) -> Any:
        message = "Model class Session doesn't declare an explicit app_label."
        raise RuntimeError(message)


def test_sessions_whose_app_is_not_installed_are_left_to_django() -> None:
    """It says so itself."""
    assert run(**SAVED, SESSION_ENGINE=HERE) == []
