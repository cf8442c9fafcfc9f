"""Settings of the processes that tests start: those of the demonstration, with more patience."""

from __future__ import annotations

from testproject.settings import *  # noqa: F403 - that is what it is for

# A machine that is busy for a moment makes no server count as down.
REPLICA_ROUTER = {"CONNECT_TIMEOUT": 10.0, "STORE_TIMEOUT": 10.0}
