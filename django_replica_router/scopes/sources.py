"""What a scope works for: the view of its request, or the code that has opened it."""

from __future__ import annotations

from contextlib import suppress
from types import CodeType
from typing import Any

from django.conf import settings
from django.urls import Resolver404, resolve

from django_replica_router.scopes.scope import Scope


def names_of(scope: Scope) -> tuple[str, ...]:
    """Return the names by which the same work is known again; none where nothing tells.

    A request has two where a middleware has changed its urlconf: by one it is known before, by the
    other afterwards.
    """
    source = scope.source
    if source is None:
        return ()
    if isinstance(source, CodeType):
        return (f"{source.co_filename}:{source.co_name}",)
    first = source.resolver_match
    urlconf = getattr(source, "urlconf", None) or settings.ROOT_URLCONF
    if first is None:
        first = _resolve(source.path_info, urlconf)
    found = [first]
    if urlconf != settings.ROOT_URLCONF:
        found.append(_resolve(source.path_info, settings.ROOT_URLCONF))
    return tuple(dict.fromkeys(_name(match) for match in found if match is not None))


def _resolve(path: str, urlconf: Any) -> Any:
    # A middleware reads before Django has resolved the path, and what it reads a view may save.
    with suppress(Resolver404):
        return resolve(path, urlconf)
    return None


def _name(match: Any) -> str:
    # Of a class-based view the class, as Django names it in its error pages.
    return str(match._func_path)
