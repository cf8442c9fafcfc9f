"""URLs of the demonstration project."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import include, path

from testproject.notes import api, views

urlpatterns = [
    path("", views.home, name="home"),
    path("overview/", views.overview, name="overview"),
    path("notes/new/", views.create, name="note-create"),
    path("notes/<int:pk>/", views.detail, name="note"),
    path("notes/<int:pk>/edit/", views.edit, name="note-edit"),
    path("notes/<int:pk>/touch/", views.touch, name="note-touch"),
    path("notes/<int:pk>/comment/", views.comment, name="note-comment"),
    path("session/", views.remember, name="session"),
    path("lag/", views.lag, name="lag"),
    path("api/me/", api.me, name="api-me"),
    path("api/notes/<int:pk>/", api.note, name="api-note"),
    path("orders/", include("testproject.orders.urls")),
    path("login/", auth_views.LoginView.as_view(), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]

if apps.is_installed("django_replica_router.contrib.status"):
    urlpatterns.append(path("replicas/", include("django_replica_router.contrib.status.urls")))
