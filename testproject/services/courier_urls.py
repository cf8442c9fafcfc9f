"""URLs of the courier's service."""

from __future__ import annotations

from django.urls import path

from testproject.services import courier

urlpatterns = [path("parcels/<int:pk>/", courier.deliver, name="parcel")]
