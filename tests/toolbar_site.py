"""The site of `tests.site`, with the URLs of django-debug-toolbar."""

from __future__ import annotations

from django.urls import include, path

from tests.site import urlpatterns as site_urls

urlpatterns = [path("__debug__/", include("debug_toolbar.urls")), *site_urls]
