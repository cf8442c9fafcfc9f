"""The header that carries a token to and from clients that keep no cookies."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.cache import patch_cache_control, patch_vary_headers

from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.scopes.scope import Scope
from django_replica_router.scopes.signing import Token


def read_header(request: HttpRequest, scope: Scope, name: str) -> None:
    """Have the scope of a request read by the token in its header. A broken or forged one is ignored, and counted."""
    text = request.headers.get(name)
    if text:
        scope.arrived = Token.read(text)
        scope.see(scope.arrived)


def set_header(response: HttpResponseBase, scope: Scope, name: str, token: Token) -> None:
    """Hand a token to the client, where it says more than the one that came with the request.

    What a response shows depends on the token: a shared cache must not answer by one what was made for another,
    nor keep a token.

    Args:
        response: the response.
        scope: of the request.
        name: of the header.
        token: what the client must see from now on.
    """
    if scope.clusters:
        patch_vary_headers(response, (name,))
    # Not what the view has been told meanwhile: the client does not know that.
    if token and (scope.arrived is None or not scope.arrived >= token):
        response.headers[name] = str(token)
        patch_cache_control(response, private=True)


def name_of_header(name: str | None) -> str:
    """Return the name of the header that carries tokens to another service: the given one, or the setting's.

    Raises:
        ConfigurationError: there is neither.
    """
    found = name or get_config().HEADER
    if not found:
        message = "No header is named that could carry a token: set REPLICA_ROUTER['HEADER'], or give header='...'."
        raise ConfigurationError(message)
    return found
