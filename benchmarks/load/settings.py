"""Settings of a site with one table, with the routing of a contender."""

from __future__ import annotations

from benchmarks.settings import *  # noqa: F403
from benchmarks.settings import CONTENDER, DATABASES, INSTALLED_APPS

for _database in DATABASES.values():
    _database["CONN_MAX_AGE"] = None

ROOT_URLCONF = "benchmarks.load.site"
WSGI_APPLICATION = "benchmarks.load.wsgi.application"
INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.load"]
# Who is signed in is known without a query, so that what is measured is the routing.
MIDDLEWARE = [
    "benchmarks.load.site.meter_middleware",
    *CONTENDER.middleware,
    "benchmarks.load.site.sign_in_middleware",
    *CONTENDER.late_middleware,
]
LOGGING_CONFIG = None
