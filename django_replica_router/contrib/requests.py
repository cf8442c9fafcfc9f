"""Calls of another service by requests: it sees what was written here, and what it writes is seen here."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django_replica_router.contrib.extras import needs
from django_replica_router.errors import ConfigurationError
from django_replica_router.scopes.headers import name_of_header
from django_replica_router.scopes.signing import Token
from django_replica_router.tokens import current_token, see

with needs("requests"):
    import requests
    from requests.adapters import HTTPAdapter


class TokenAdapter(HTTPAdapter):
    """Sends the token of the present scope with each request, and takes in the one that comes back.

    ``carry_tokens()`` mounts it. Who mounts one himself ends the prefix with a slash: to requests,
    ``https://orders.internal.example.com`` begins with ``https://orders.internal``.

    Args:
        header: its name; that of the setting ``HEADER`` when None.
        options: those of ``requests.adapters.HTTPAdapter``.
    """

    # Those that survive pickling, as the rest of an adapter does.
    __attrs__ = [*HTTPAdapter.__attrs__, "_header"]  # noqa: RUF012 - as the base class has it

    def __init__(self, *, header: str | None = None, **options: Any) -> None:
        self._header = header
        super().__init__(**options)

    def send(
        self, request: requests.PreparedRequest, *args: Any, **options: Any
    ) -> requests.Response:
        """Send a request.

        Raises:
            ConfigurationError: no header is named.
            SynchronousOnlyOperation: in an event loop.
        """
        name = name_of_header(self._header)
        # A copy: requests makes the request that follows a redirect, to whomever, out of the headers of the first.
        bearing = request.copy()
        text = str(current_token() | Token.read(request.headers.get(name)))
        if text:
            bearing.headers[name] = text
        response = super().send(bearing, *args, **options)
        response.request = request
        see(response.headers.get(name, ""))
        return response


def carry_tokens(session: requests.Session, *origins: str, header: str | None = None) -> None:
    """Have a session carry tokens to these services and back, and to no others.

        carry_tokens(session, "https://orders.internal")

    Args:
        session: the session.
        origins: scheme and host, and the port where it is not the usual one.
        header: its name; that of the setting ``HEADER`` when None.

    Raises:
        ConfigurationError: one of them is no origin.
    """
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            message = (
                f"carry_tokens() takes origins such as 'https://orders.internal', not {origin!r}."
            )
            raise ConfigurationError(message)
        session.mount(origin.rstrip("/") + "/", TokenAdapter(header=header))
