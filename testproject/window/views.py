"""The page, what happens on it, and the stream that keeps it up to date."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import BoundedSemaphore

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from testproject.window.controls import DELAYS_MS
from testproject.window.errors import RefusedError, UnknownError, WindowError
from testproject.window.stage import stage
from testproject.window.stories import STORIES
from testproject.window.watching import Watcher

MOST_STREAMS = 8
"""Each keeps a thread."""

TICK_SECONDS = 0.25
"""Between two events: more often than that nobody sees."""

SILENCE_SECONDS = 5.0
_streams = BoundedSemaphore(MOST_STREAMS)


@require_GET
@ensure_csrf_cookie
def index(request: HttpRequest) -> HttpResponse:
    """Show the window."""
    delays = [(ms, f"{ms / 1000:g} s" if ms else "0") for ms in DELAYS_MS]
    context = {
        "sites": stage().stories.sites,
        "stories": STORIES.values(),
        "servers": stage().controls.names(),
        "delays": delays,
    }
    return render(request, "window/index.html", context)


@require_GET
def events(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Tell the state of all servers, again and again, as server-sent events."""
    if not _streams.acquire(blocking=False):
        return HttpResponse("Too many windows are open. Close one.", status=503)
    return StreamingHttpResponse(
        Stream(stage().watcher),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


@require_POST
def story(request: HttpRequest, name: str) -> JsonResponse:
    """Have the same visitor do the same on each of the three sites, and tell what they saw."""
    try:
        return JsonResponse(stage().stories.tell(name))
    except WindowError as error:
        return _refusal(error)


@require_POST
def server(request: HttpRequest, name: str, action: str) -> JsonResponse:
    """Do something to a server."""
    text = request.POST.get("ms", "")
    delay_ms = int(text) if text.isdecimal() else None
    try:
        return JsonResponse({"said": stage().controls.move(name, action, delay_ms=delay_ms)})
    except WindowError as error:
        return _refusal(error)


@require_POST
def reset(request: HttpRequest) -> JsonResponse:
    """Bring all servers back to how they were at the start."""
    try:
        return JsonResponse({"said": stage().controls.reset()})
    except RefusedError as error:
        return _refusal(error)


def _refusal(error: WindowError) -> JsonResponse:
    status = 404 if isinstance(error, UnknownError) else 409
    return JsonResponse({"said": str(error)}, status=status)


class Stream:
    """One browser's events, which frees its place when the browser has gone.

    A class and no generator: one that was never begun would not do what stands in its ``finally``.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._number = -1
        self._is_open = True
        self._next_at = 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        time.sleep(max(0.0, self._next_at - time.monotonic()))
        self._next_at = time.monotonic() + TICK_SECONDS
        # What is sent without news shows whether the browser is still there.
        self._number, described = self._watcher.wait(self._number, SILENCE_SECONDS)
        if self._watcher.has_ended:
            raise StopIteration
        return f"data: {described}\n\n".encode()

    def close(self) -> None:
        """Give the place back, once."""
        if self._is_open:
            self._is_open = False
            _streams.release()
