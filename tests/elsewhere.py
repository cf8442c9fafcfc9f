"""URLs of another host, for the same view under another path of its own."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponseBase
from django.urls import path

from tests.site import run


@login_not_required
def elsewhere(request: HttpRequest) -> HttpResponseBase:
    """Do what the test says."""
    return run(request)


urlpatterns = [path("run/", elsewhere)]
