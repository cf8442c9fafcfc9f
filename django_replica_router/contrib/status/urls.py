"""Addresses for probes, to be included by a site."""

from __future__ import annotations

from django.db import connections, transaction
from django.urls import path

from django_replica_router.contrib.status import views

health = views.health
for _alias in connections:
    # ATOMIC_REQUESTS would ask the primary, which may be down, before the view is called.
    health = transaction.non_atomic_requests(using=_alias)(health)

app_name = "replica_router_status"
urlpatterns = [
    path("health/", health, name="health"),
    path("status.json", views.status, name="status"),
]
