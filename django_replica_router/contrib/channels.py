"""Consumers of Channels: each message is handled in a scope of its own, for the user of the connection."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from types import CodeType
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.utils.functional import LazyObject

from django_replica_router.conf import get_config
from django_replica_router.contrib.extras import needs
from django_replica_router.decorators import OpenedScope, ScopeBlock
from django_replica_router.scopes.headers import read_header
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.scopes.signing import Token

with needs("channels"):
    from channels.consumer import AsyncConsumer, get_handler_name

TOKEN_KEY = "replica_token"  # noqa: S105 - a name, not a secret
"""Where a message of a channel layer has the token of who sent it."""

# What the generic consumers call, of the site's own, for a message of that kind.
_CALLED = {
    "websocket_connect": ("connect",),
    "websocket_receive": ("receive_json", "receive"),
    "websocket_disconnect": ("disconnect",),
    "http_request": ("handle",),
}


class ScopePerMessage(AsyncConsumer):
    """Stands first among the bases of a consumer, synchronous or asynchronous.

    A message reads from replicas that have what the user of the connection has written by then, by whatever
    other request, and what it writes itself is remembered for the user. A message that another consumer has sent
    by a channel layer may carry that one's token: ``{"type": ..., "replica_token": str(await acurrent_token())}``.
    """

    async def dispatch(self, message: Any) -> None:
        """Handle a message."""
        request = _handshake(self.scope)
        identity = RequestIdentity(request)
        config = get_config()
        opened = OpenedScope(identity, debug=config.DEBUG)
        if config.HEADER is not None:
            read_header(request, opened, config.HEADER)
        opened.see(Token.read(message.get(TOKEN_KEY)))
        async with ScopeBlock(opened):
            opened.source = _code_of(type(self), get_handler_name(message))
            try:
                await super().dispatch(message)
            finally:
                # Who has signed in meanwhile.
                _note_user(request, self.scope)


def _handshake(scope: Mapping[str, Any]) -> ASGIRequest:
    """Return the request that has opened a connection, as far as it tells whose that is."""
    request = ASGIRequest({"path": "/", "headers": [], **scope, "method": "GET"}, BytesIO())
    _note_user(request, scope)
    return request


def _note_user(request: Any, scope: Mapping[str, Any]) -> None:
    session = scope.get("session")
    if isinstance(session, LazyObject):
        session = session.__dict__["_wrapped"]
    request.session, request.user = session, scope.get("user")


def _code_of(consumer: type, handler: str) -> CodeType | None:
    """Return the site's code that handles a message: by it is known who saves what was read from a replica."""
    for name in (handler, *_CALLED.get(handler, ())):
        function = getattr(consumer, name, None)
        if function is not None and not function.__module__.startswith("channels."):
            code: CodeType | None = getattr(function, "__code__", None)
            return code
    return None
