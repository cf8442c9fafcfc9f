"""The page of metrics, and pages that make some."""

from __future__ import annotations

import os
import signal

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.urls import path
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from testproject.notes.models import Note
from tests.worker_site import urlpatterns as pages


@login_not_required
def metrics(request: HttpRequest) -> HttpResponse:
    """Tell what all processes of the site have published, as the documents have it."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


@login_not_required
def end(request: HttpRequest) -> HttpResponse:
    """Read, and have the process that answers end in good order, once it has answered."""
    Note.objects.get()
    os.kill(os.getpid(), signal.SIGTERM)
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("metrics/", metrics), path("end/", end), *pages]
