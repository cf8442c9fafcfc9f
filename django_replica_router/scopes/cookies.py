"""The signed cookie that carries a browser's own token, beside the token store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponseBase
from django.utils.cache import patch_cache_control, patch_vary_headers

from django_replica_router.stats import count
from django_replica_router.values.tokens import Record

NAME = "replica_router"
_SALT = "django_replica_router.cookie"


def read_cookie(request: HttpRequest, life: float) -> dict[str, Record]:
    """Return the records in the request's cookie by primary; none where it is not ours.

    A cookie that was not signed with ``SECRET_KEY``, is broken, or is older than a token lives, is
    as good as none: it neither raises nor binds anybody.

    Args:
        request: the request.
        life: seconds for which a token binds.
    """
    value = request.COOKIES.get(NAME)
    if not value:
        return {}
    try:
        content = signing.loads(value, salt=_SALT, max_age=timedelta(seconds=life))
    except Exception:  # whatever a stranger can make of a cookie
        count("cookies_refused")
        return {}
    if not isinstance(content, dict):
        return {}
    decoded = {str(primary): Record.decode(text) for primary, text in content.items()}
    return {primary: record for primary, record in decoded.items() if record is not None}


def set_cookie(
    request: HttpRequest, response: HttpResponseBase, records: Mapping[str, Record], life: float
) -> None:
    """Add the records to what the browser's cookie says. None of them ever falls.

    Args:
        request: the request, whose cookie the new one must bind at least as much as.
        response: the response that sets the new one. It is no longer for shared caches.
        records: by primary.
        life: seconds for which a token binds.
    """
    merged = read_cookie(request, life)
    for primary, record in records.items():
        merged[primary] = merged[primary].merge(record) if primary in merged else record
    value = signing.dumps(
        {primary: record.encode() for primary, record in merged.items()}, salt=_SALT
    )
    response.set_cookie(
        NAME,
        value,
        max_age=round(life),
        path=settings.SESSION_COOKIE_PATH,
        domain=settings.SESSION_COOKIE_DOMAIN,
        secure=settings.SESSION_COOKIE_SECURE,
        samesite=settings.SESSION_COOKIE_SAMESITE,
        httponly=True,
    )
    patch_vary_headers(response, ("Cookie",))
    patch_cache_control(response, private=True)
