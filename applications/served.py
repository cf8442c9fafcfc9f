"""What is added to the settings of each application: the servers, the README's three settings, and a meter."""

from __future__ import annotations

import json
import os
from typing import Any


def added(installed_apps: list[str], middleware: list[str]) -> dict[str, Any]:
    """Return the settings that differ from those of the application's own documentation.

    Args:
        installed_apps: the application's ``INSTALLED_APPS``.
        middleware: its ``MIDDLEWARE``.
    """
    databases = json.loads(os.environ["APPLICATIONS_DATABASES"])
    for database in databases.values():
        database["CONN_MAX_AGE"] = 60
    cache = {"BACKEND": "django_redis.cache.RedisCache"}
    # What an application needs beside the three is a recipe in the docs, and can be left out here. Its own settings
    # hold on one database as well: what they change by themselves is no difference that replicas make.
    recipe = json.loads(os.environ.get("APPLICATIONS_RECIPE", "{}"))
    settings: dict[str, Any] = {
        **recipe,
        "DATABASES": databases,
        "CACHES": {"default": cache | {"LOCATION": os.environ["APPLICATIONS_CACHE_URL"]}},
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "INSTALLED_APPS": [*installed_apps, "applications.meter"],
        "MIDDLEWARE": ["testproject.metering.meter_middleware", *middleware],
    }
    if len(databases) > 1:
        settings |= {
            "INSTALLED_APPS": [*settings["INSTALLED_APPS"], "django_replica_router"],
            "MIDDLEWARE": [
                "django_replica_router.middleware.ReplicaRouterMiddleware",
                *settings["MIDDLEWARE"],
            ],
            "DATABASE_ROUTERS": ["django_replica_router.ReplicaRouter"],
        }
    return settings
