"""How long a single read may take, whatever becomes of the replicas: from the settings in force."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from django_replica_router.conf import Config
from django_replica_router.replicas.looks import PATIENCE

NOTICED = 0.2
"""Seconds until it is noticed that a replica which is asked hangs; it is then given ``PATIENCE``."""

SLACK = 1.0
"""Seconds for what takes its own time on a busy machine: the primary's answer, and new connections to it,
through the proxy, with some forty processes at two processors. Stalls of the reading process itself are
measured, and are left out."""


def longest_read(router: Mapping[str, Any], replicas: int) -> float:
    """Return the seconds that one read may take, while the primary answers.

    What the package promises about each step (``docs/reliability.md``, ``docs/settings.md``), as if a read
    could meet with all of them.

    Args:
        router: values of ``REPLICA_ROUTER``.
        replicas: how many there are; each may take its time to be connected to.
    """
    config = Config(**router)
    lock_wait = math.inf if config.LOCK_WAIT is None else config.LOCK_WAIT
    seconds = (
        config.STORE_TIMEOUT
        + config.WAIT
        + config.CONNECT_TIMEOUT * replicas
        + NOTICED
        + PATIENCE
        + lock_wait
        + SLACK
    )
    return round(seconds, 3)
