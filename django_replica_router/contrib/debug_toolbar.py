"""A panel of django-debug-toolbar: which server has answered each statement of a page, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from django_replica_router.conf import get_config
from django_replica_router.contrib.extras import needs
from django_replica_router.contrib.showing import (
    describe_finding,
    describe_query,
    describe_servers,
    plural,
)
from django_replica_router.observations import EVENTS, Observation
from django_replica_router.observing import observe
from django_replica_router.reviewing import ADVICE, review

with needs("debug_toolbar", "debug-toolbar"):
    from debug_toolbar.panels import Panel


class ReplicaPanel(Panel):
    """For ``DEBUG_TOOLBAR_PANELS``. Observes what a page does while the toolbar is shown for it, and nothing else."""

    template = "django_replica_router/debug_toolbar.html"
    nav_title = "Replicas"
    nav_icon = "django_replica_router/replicas.svg"  # type: ignore[assignment]
    title = "Which server, and why"
    is_async = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen = Observation()

    def process_request(self, request: HttpRequest) -> Any:
        """Serve the request, observed."""
        if _is_async(self.get_response):
            return self._aprocess_request(request)
        with observe() as self._seen:
            return self.get_response(request)

    async def _aprocess_request(self, request: HttpRequest) -> HttpResponseBase:
        get_response: Any = self.get_response
        with observe() as self._seen:
            response: HttpResponseBase = await get_response(request)
        return response

    def generate_stats(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Keep what was seen in the toolbar's store, as JSON."""
        config, seen = get_config(), self._seen
        findings = review(seen, is_safe=request.method in config.SAFE_METHODS)
        servers = describe_servers(seen, config.topology)
        self.record_stats(
            {
                "findings": [describe_finding(finding) for finding in findings],
                "servers": servers,
                "queries": [describe_query(query, config.topology) for query in seen.queries],
                "events": [
                    {"text": EVENTS[event.name], "detail": event.detail, "line": event.line}
                    for event in seen.events
                    if event.name not in ADVICE
                ],
                "summary": _summary(servers, len(findings)),
            }
        )

    def generate_server_timing(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Tell the browser, in the toolbar's own header, how long each server took."""
        for number, server in enumerate(self.get_stats()["servers"]):
            title = f"{server['alias']}: {plural(server['count'], 'query', 'queries')}"
            self.record_server_timing(f"server{number}", title, round(server["ms"], 3))

    @property
    def nav_subtitle(self) -> str:
        """Which kinds of server have answered, and how much there is to look at."""
        return str(self.get_stats().get("summary", ""))


def _is_async(get_response: Any) -> bool:
    """Tell whether what answers a request behind all panels is a coroutine function."""
    behind: Callable[..., Any] = get_response
    while isinstance(getattr(behind, "__self__", None), Panel):
        behind = behind.__self__.get_response  # type: ignore[attr-defined]
    return iscoroutinefunction(behind)


def _summary(servers: list[dict[str, Any]], findings: int) -> str:
    counts: Counter[str] = Counter()
    for server in servers:
        counts[server["role"]] += server["count"]
    parts = [
        f"{counts['replica']} on replicas, {counts['primary']} on the primary",
        *([f"{counts['other']} elsewhere"] if counts["other"] else []),
    ]
    text = ", ".join(parts)
    return f"{text}; {plural(findings, 'warning', 'warnings')}" if findings else text
