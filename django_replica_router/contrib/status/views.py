"""What probes and scripts are told."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_replica_router.status.overview import as_document, as_verdict, take_overview
from django_replica_router.status.serving import judge, needed_primaries

PERMISSION = "replica_router_status.view_replicas"


@login_not_required
@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Tell whether the site can serve: 200 where it can, 503 where it cannot, and 404 for an unknown database.

    It asks no server, no cache and no session. ``?database=`` names the primary of one cluster, or several.
    """
    known = needed_primaries()
    wanted = request.GET.getlist("database") or known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        message = f"database should be the alias of a primary, not {unknown[0]!r}."
        return JsonResponse({"error": message}, status=404)
    verdict = judge(dict.fromkeys(wanted))
    response = JsonResponse(as_verdict(verdict), status=200 if verdict.serve else 503)
    # Probes come every few seconds: Django would have each of them logged as an error, and mailed to the admins.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


@login_not_required
@never_cache
@require_safe
def status(request: HttpRequest) -> JsonResponse:
    """Tell what the page tells, to staff that may see it; 403 to others."""
    user = getattr(request, "user", None)
    if user is None or not (user.is_active and user.is_staff and user.has_perm(PERMISSION)):
        message = f"Sign in as a member of the staff who has the permission {PERMISSION!r}."
        return JsonResponse({"error": message}, status=403)
    return JsonResponse(as_document(take_overview()))
