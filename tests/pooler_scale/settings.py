"""Settings of the clients: those of the demonstration, with more patience."""

from __future__ import annotations

from testproject.settings import *  # noqa: F403 - that is what it is for

# On a small machine so many clients take their time: what is slow must not look like what is dead.
REPLICA_ROUTER = {
    "CONNECT_TIMEOUT": 20.0,
    "STORE_TIMEOUT": 20.0,
    "MAX_LAG": 30.0,
    "WAIT": 1.0,
    "TOKEN_TTL": 600.0,
}
