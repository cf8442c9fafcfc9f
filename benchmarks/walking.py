"""Walks through requests, and counts cache commands; runs in a process with a contender's settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db import connections
from django.test import Client

from benchmarks.deciding import CacheTime, prepare, watch_cache
from benchmarks.deciding import browser as get_browser


def warm_up(scenarios: dict[str, list[str]], session: str) -> None:
    """Open all connections, and go on until reads are routed as they will be."""
    for name, steps in scenarios.items():
        client = _client(name, session)
        for step in steps * 3:
            _do(client, step)
        prepare(name, session if "anonymous" not in name else None, writes=False)


def walk(scenario: str, steps: list[str], session: str, times: int) -> dict[str, Any]:
    """Go through the steps of a scenario so many times, and return what was answered."""
    watch_cache()
    CacheTime.commands = 0
    client = _client(scenario, session)
    statuses: Counter[str] = Counter()
    for _ in range(times):
        for step in steps:
            statuses[f"{step.split()[0]} {_do(client, step)}"] += 1
    return {"cache": CacheTime.commands, "statuses": dict(statuses)}


def _client(scenario: str, session: str) -> Client:
    return get_browser(scenario, None if "anonymous" in scenario else session)


def _do(client: Client, step: str) -> int:
    if step == "close":  # as Django does at the end of a request, with its default CONN_MAX_AGE
        connections.close_all()
        return 0
    method, path = step.split()
    return int(getattr(client, method)(path).status_code)
