"""The page in the admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.cache import add_never_cache_headers

from django_replica_router.contrib.status.models import Replicas
from django_replica_router.contrib.status.pages import page_context

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Replicas]
else:
    ModelAdmin = admin.ModelAdmin


@admin.register(Replicas)
class ReplicasAdmin(ModelAdmin):
    """Shows how the servers are where other models list their rows."""

    def get_urls(self) -> list[URLPattern]:
        """Return the one address: there are no rows to be added, changed or deleted."""
        view = self.admin_site.admin_view(self.changelist_view)
        return [path("", view, name="replica_router_status_replicas_changelist")]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds a server here."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Replicas | None = None) -> bool:
        """Nobody changes one."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Replicas | None = None) -> bool:
        """Nobody deletes one."""
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """Show the page.

        Raises:
            PermissionDenied: the user lacks the permission ``replica_router_status.view_replicas``.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            **page_context(request),
            "opts": self.opts,
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        response = TemplateResponse(request, "replica_router_status/page.html", context)
        add_never_cache_headers(response)
        return response
