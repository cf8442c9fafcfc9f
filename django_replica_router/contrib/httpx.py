"""Calls of another service by httpx: it sees what was written here, and what it writes is seen here."""

from __future__ import annotations

from django_replica_router.contrib.extras import needs
from django_replica_router.scopes.headers import name_of_header
from django_replica_router.scopes.signing import Token
from django_replica_router.tokens import acurrent_token, current_token, see

with needs("httpx"):
    import httpx


class TokenTransport(httpx.BaseTransport):
    """Sends the token of the present scope with each request, and takes in the one that comes back.

    Mount it for the hosts that are to have it, and for no others: what follows a redirect to another host
    goes out by that one's transport, and without a token.

        httpx.Client(mounts={"https://orders.internal": TokenTransport()})

    Args:
        transport: what sends the requests; ``httpx.HTTPTransport()`` when None.
        header: its name; that of the setting ``HEADER`` when None.
    """

    def __init__(
        self, transport: httpx.BaseTransport | None = None, *, header: str | None = None
    ) -> None:
        self._transport = httpx.HTTPTransport() if transport is None else transport
        self._header = header

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            ConfigurationError: no header is named.
            SynchronousOnlyOperation: in an event loop.
        """
        name = name_of_header(self._header)
        response = self._transport.handle_request(_bearing(request, name, current_token()))
        see(response.headers.get(name, ""))
        return response

    def close(self) -> None:
        """Close what sends the requests."""
        self._transport.close()


class AsyncTokenTransport(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient``.

    Args:
        transport: what sends the requests; ``httpx.AsyncHTTPTransport()`` when None.
        header: its name; that of the setting ``HEADER`` when None.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, *, header: str | None = None
    ) -> None:
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport
        self._header = header

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            ConfigurationError: no header is named.
        """
        name = name_of_header(self._header)
        token = await acurrent_token()
        response = await self._transport.handle_async_request(_bearing(request, name, token))
        see(response.headers.get(name, ""))
        return response

    async def aclose(self) -> None:
        """Close what sends the requests."""
        await self._transport.aclose()


def _bearing(request: httpx.Request, name: str, token: Token) -> httpx.Request:
    """Return a request with the token in a header, beside what the caller has put there himself.

    Another one: httpx makes the request that follows a redirect, to whomever, out of the headers of the first.
    """
    text = str(token | Token.read(request.headers.get(name)))
    if not text:
        return request
    headers = request.headers.copy()
    headers[name] = text
    return httpx.Request(
        request.method,
        request.url,
        headers=headers,
        stream=request.stream,
        extensions=request.extensions,
    )
