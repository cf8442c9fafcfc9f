"""What tests of the system checks have in common."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.core import checks
from django.test import override_settings

from django_replica_router.checks import check_deployment, check_settings

ROUTER = "django_replica_router.ReplicaRouter"
MINE = "django_replica_router.middleware.ReplicaRouterMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
FILES = "django.core.cache.backends.filebased.FileBasedCache"
REDIS = "django.core.cache.backends.redis.RedisCache"
HEALTHY: dict[str, Any] = {
    "CACHES": {"default": {"BACKEND": REDIS, "LOCATION": "redis://127.0.0.1:1"}},
    "DATABASE_ROUTERS": [ROUTER],
    "MIDDLEWARE": [MINE, SESSIONS, COMMON],
}
ALIASES = "default, replica1, replica2"


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


DISCOVERY = {"DISCOVERY": {"replica1": {"NAME": "replicas.test"}}}


def install(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """Have an app of that label, with the models of the notes."""
    models = list(apps.get_app_config("notes").get_models())
    app = SimpleNamespace(label=label, models=[], get_models=lambda *args: [] if args else models)
    monkeypatch.setitem(apps.app_configs, label, app)  # type: ignore[arg-type]


NOTES = {"PRIMARY_ONLY": ["notes"]}
