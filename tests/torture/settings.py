"""Settings of the tortured site: those of the demonstration, less whatever only costs time."""

from __future__ import annotations

import json
import os
from typing import Any

from testproject.settings import (
    ALLOWED_HOSTS,
    CACHES,
    DATABASES,
    DEFAULT_AUTO_FIELD,
    SECRET_KEY,
    USE_TZ,
)

__all__ = [
    "ALLOWED_HOSTS",
    "CACHES",
    "DATABASES",
    "DEFAULT_AUTO_FIELD",
    "SECRET_KEY",
    "USE_TZ",
]

ROOT_URLCONF = "tests.torture.site"
INSTALLED_APPS = [
    "tests.torture",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django_replica_router",
]
MIDDLEWARE = [
    "django_replica_router.middleware.ReplicaRouterMiddleware",
    "tests.torture.site.meter_middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DATABASE_ROUTERS = ["django_replica_router.ReplicaRouter"]
# The test's own values come by the environment, as JSON.
REPLICA_ROUTER: dict[str, Any] = {
    "DEBUG": True,
    "IGNORED_WRITES": ["torture.Visit"],
    **json.loads(os.environ.get("TORTURE_ROUTER", "{}")),
}

for alias, database in DATABASES.items():
    # After a failover each worker holds connections to a server that is gone. That the primary's
    # are replaced is Django's own business, by this setting; the replicas' are the package's.
    database["CONN_HEALTH_CHECKS"] = alias == "default"
    if database["CONN_MAX_AGE"]:
        database["CONN_MAX_AGE"] = None
if "redis" in CACHES["default"]["BACKEND"]:
    # Longer than anybody may wait for a cache that hangs: that is for the package's own time-out to bound.
    CACHES["default"]["OPTIONS"] = {"SOCKET_CONNECT_TIMEOUT": 30.0, "SOCKET_TIMEOUT": 30.0}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["stderr"], "level": "ERROR"}},
}
