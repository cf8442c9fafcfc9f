"""URLs of the window."""

from __future__ import annotations

from django.urls import path

from testproject.window import views

urlpatterns = [
    path("", views.index, name="index"),
    path("events/", views.events, name="events"),
    path("stories/<slug:name>/", views.story, name="story"),
    path("servers/<slug:name>/<slug:action>/", views.server, name="server"),
    path("reset/", views.reset, name="reset"),
]
