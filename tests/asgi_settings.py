"""Settings of ASGI servers that serve pages of the tests' own."""

from __future__ import annotations

from tests.patient_settings import *  # noqa: F403 - that is what it is for

ROOT_URLCONF = "tests.asgi_site"
# Replicas that a test has paused are not to be left because of their age.
REPLICA_ROUTER = {**REPLICA_ROUTER, "MAX_LAG": 300.0, "TOKEN_TTL": 600.0}  # noqa: F405
