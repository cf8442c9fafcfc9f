"""Settings of the demonstration project; whoever starts it hands the servers over in the environment."""

from __future__ import annotations

import json
import os
from typing import Any

# 1. Where things are ---------------------------------------------------------------------------

# TESTPROJECT_DATABASES   DATABASES as JSON
# TESTPROJECT_CACHE_URL   a Redis or Valkey URL
# TESTPROJECT_ROUTING     package, random, pin or primary
# TESTPROJECT_ENGINE      django.db.backends.postgresql, or another database backend
# TESTPROJECT_INSPECT     1 shows lag and reasons on every page, and a control to change the lag
# TESTPROJECT_COOKIES     what the cookies' names begin with: browsers keep them by host, not by port
ROUTING = os.environ.get("TESTPROJECT_ROUTING", "package")
INSPECT = os.environ.get("TESTPROJECT_INSPECT") == "1"
COOKIES = os.environ.get("TESTPROJECT_COOKIES", "")
ENGINE = os.environ.get("TESTPROJECT_ENGINE", "django.db.backends.postgresql")


def _placeholder(**options: object) -> dict[str, Any]:
    """Return a database that can be named but not reached, so that settings import anywhere."""
    return {"ENGINE": ENGINE, "HOST": "127.0.0.1", "NAME": "app"} | options


def _databases() -> dict[str, dict[str, Any]]:
    described = os.environ.get("TESTPROJECT_DATABASES")
    databases: dict[str, dict[str, Any]] = (
        json.loads(described)
        if described
        else {
            "default": _placeholder(),
            "replica1": _placeholder(TEST={"MIRROR": "default"}),
            "replica2": _placeholder(TEST={"MIRROR": "default"}),
        }
    )
    for database in databases.values():
        # Persistent connections are how such sites run: without them, connecting is what is measured.
        database.setdefault("CONN_MAX_AGE", 60)
    return databases


def _cache() -> dict[str, Any]:
    url = os.environ.get("TESTPROJECT_CACHE_URL")
    if url is None:
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url}


DATABASES = _databases()
CACHES = {"default": _cache()}

# 2. How reads are routed -----------------------------------------------------------------------

ROUTERS = {
    "package": "django_replica_router.ReplicaRouter",
    "random": "testproject.routing.random.RandomReplicaRouter",
    "pin": "testproject.routing.pin.PinRouter",
    "primary": None,
}
ROUTING_MIDDLEWARE = {
    "package": "django_replica_router.middleware.ReplicaRouterMiddleware",
    "pin": "testproject.routing.pin.PinMiddleware",
}

DATABASE_ROUTERS = [router for router in [ROUTERS[ROUTING]] if router]
REPLICA_ROUTER: dict[str, Any] = {"DEBUG": True, "SHARE_COUNTS": True} if INSPECT else {}

# 3. The site -----------------------------------------------------------------------------------

SECRET_KEY = "only for the demonstration, which listens on loopback"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"
ASGI_APPLICATION = "testproject.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "static/"
SESSION_COOKIE_NAME = f"{COOKIES}sessionid"
CSRF_COOKIE_NAME = f"{COOKIES}csrftoken"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

INSTALLED_APPS = [
    "testproject.notes",
    "testproject.orders",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    *(
        ["django_replica_router", "django_replica_router.contrib.status"]
        if ROUTING == "package"
        else []
    ),
]

MIDDLEWARE = [
    *([ROUTING_MIDDLEWARE[ROUTING]] if ROUTING in ROUTING_MIDDLEWARE else []),
    "testproject.metering.meter_middleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "testproject.notes.context_processors.routing",
            ],
        },
    },
]

# Many sign-ins a second are part of the workload: a slow hash would be all that is measured.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
