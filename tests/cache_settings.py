"""Settings of worker processes whose cache the test says, with its client and its options."""

from __future__ import annotations

import json
import os

from django_replica_router.stores import clients as cache_clients
from django_replica_router.stores import redis as redis_client
from tests.patient_settings import *  # noqa: F403 - that is what it is for

CACHES = {"default": json.loads(os.environ["TESTS_CACHE"])}
REPLICA_ROUTER = {"CONNECT_TIMEOUT": 10.0, "STORE_TIMEOUT": float(os.environ["TESTS_TIMEOUT"])}

# Without a rule, for the controls.
if os.environ.get("TESTS_WITHOUT") == "names":
    cache_clients.is_a = lambda error, name: False
if os.environ.get("TESTS_WITHOUT") == "bound":
    redis_client.can_be_bounded = lambda pool: False
