"""URLs of the demonstration, and pages of so many queries."""

from __future__ import annotations

from django.urls import path

from benchmarks import probe, views
from testproject.urls import urlpatterns as site_urlpatterns

urlpatterns = [
    *site_urlpatterns,
    path("bench/<int:queries>/", views.page),
    path("bench/mine/<int:queries>/", views.my_page),
    path("bench/write/", views.write),
    path("bench/write/atomic/", views.write_atomic),
    path("bench/probe/", probe.probe),
]
