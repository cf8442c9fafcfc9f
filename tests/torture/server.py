"""What the tortured site is told, and what it tells of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from testproject.cluster.gunicorn import Site
from testproject.cluster.programs import site_environment

STATS_PAGE = "/stats"
STATS_SECONDS = 3.0


def environment(
    databases: Mapping[str, Mapping[str, Any]],
    cache_url: str,
    router: Mapping[str, Any],
    control: str = "",
) -> dict[str, str]:
    """Return the environment that tells the settings where the servers are."""
    return site_environment(
        databases,
        cache_url,
        settings="tests.torture.settings",
        TORTURE_ROUTER=json.dumps(router),
        TORTURE_CONTROL=control,
    )


def get_stats(site: Site) -> dict[int, dict[str, Any]]:
    """Return what the package has counted, by worker, of as many as answer."""
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + STATS_SECONDS
    while len(found) < site.worker_count and time.monotonic() < deadline:
        try:
            # Without keep-alive, so that any worker may take the next one.
            answer = httpx.get(f"{site.url}{STATS_PAGE}", trust_env=False, timeout=5.0).json()
        except (httpx.TransportError, ValueError):
            continue
        found[answer["pid"]] = answer["stats"]
    return found
