"""Settings of two services that call each other, each with a cluster of its own."""

from __future__ import annotations

import os

from django_replica_router.contrib import httpx, requests
from tests.patient_settings import *  # noqa: F403 - that is what it is for

SECRET_KEY = os.environ["TESTS_SECRET"]
SHOP_URL = os.environ["TESTS_SHOP_URL"]
INDEX_URL = os.environ["TESTS_INDEX_URL"]
ROOT_URLCONF = "tests.peer_site"
MIDDLEWARE = [
    "django_replica_router.middleware.ReplicaRouterMiddleware",
    "testproject.metering.meter_middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
]
REPLICA_ROUTER = {
    **REPLICA_ROUTER,  # noqa: F405
    "HEADER": "X-Replica-Token",
    "TOKEN_KEYS": ["what both services know"],
    # Replicas that a test has paused are not to be left because of their age.
    "MAX_LAG": 300.0,
    "TOKEN_TTL": 600.0,
}

# Without what carries tokens, for the controls.
if os.environ.get("TESTS_WITHOUT") == "carriers":
    httpx.AsyncTokenTransport = lambda: None  # httpx's own then
    requests.carry_tokens = lambda session, *origins: None
