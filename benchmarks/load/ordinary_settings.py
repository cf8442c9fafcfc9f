"""Settings of an ordinary site, with the routing of a contender."""

from __future__ import annotations

import json
import os

from benchmarks.load.settings import *  # noqa: F403
from benchmarks.load.settings import CONTENDER

FURTHER_QUERIES = 1
ROOT_URLCONF = "benchmarks.load.ordinary"
MIDDLEWARE = [
    "benchmarks.load.ordinary.meter_middleware",
    *CONTENDER.middleware,
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    *CONTENDER.late_middleware,
]
globals().update(json.loads(os.environ.get("BENCHMARKS_OVERRIDES", "{}")))
