"""The demonstration's settings with the routing of a contender, named in the environment."""

from __future__ import annotations

import json
import os

from benchmarks.contenders import BY_NAME, PRIMARY
from testproject.settings import *  # noqa: F403
from testproject.settings import DATABASES, INSTALLED_APPS, MIDDLEWARE

# BENCHMARKS_CONTENDER   the name of a contender
# BENCHMARKS_OVERRIDES   JSON: settings that replace the contender's
# BENCHMARKS_METER       1 answers with X-Reads: which server has served how many reads
CONTENDER = BY_NAME[os.environ.get("BENCHMARKS_CONTENDER", "none")]
# BENCHMARKS_PROBE       1 lets benchmarks.probe run functions before a request has read anything
_METER = "testproject.metering.meter_middleware"

ROOT_URLCONF = "benchmarks.urls"
DATABASE_ROUTERS = list(CONTENDER.routers)
INSTALLED_APPS = [*INSTALLED_APPS, *CONTENDER.apps]
MIDDLEWARE = [
    *CONTENDER.middleware,
    *(["benchmarks.probe.ProbeMiddleware"] if os.environ.get("BENCHMARKS_PROBE") else []),
    *(name for name in MIDDLEWARE if name != _METER or os.environ.get("BENCHMARKS_METER")),
    *CONTENDER.late_middleware,
]

globals().update(CONTENDER.settings_for([alias for alias in DATABASES if alias != PRIMARY]))
globals().update(json.loads(os.environ.get("BENCHMARKS_OVERRIDES", "{}")))
