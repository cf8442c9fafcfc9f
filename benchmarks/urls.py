"""Pages of so many queries: nothing of the demonstration, whose pages name parts of the package."""

from __future__ import annotations

from django.urls import path

from benchmarks import probe, views

urlpatterns = [
    path("bench/<int:queries>/", views.page),
    path("bench/mine/<int:queries>/", views.my_page),
    path("bench/write/", views.write),
    path("bench/write/atomic/", views.write_atomic),
    path("bench/probe/", probe.probe),
]
