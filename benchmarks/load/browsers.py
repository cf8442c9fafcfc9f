"""Ways to send a request to the site: within this process, or over HTTP."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Iterable
from http.cookies import SimpleCookie
from typing import Any, Protocol
from urllib.parse import urlsplit

COOKIE = "sessionid"


class Jar:
    """The cookies of one user.

    Args:
        user: who is signed in, where the site knows users by nothing but a number in a cookie.
    """

    def __init__(self, user: int | None = None) -> None:
        self._cookies: dict[str, tuple[str, float]] = {}
        if user is not None:
            self._cookies[COOKIE] = (str(user), float("inf"))

    def header(self) -> str:
        """Return what the request carries."""
        now = time.monotonic()
        live = {name: value for name, (value, end) in self._cookies.items() if end > now}
        return "; ".join(f"{name}={value}" for name, value in live.items())

    def take(self, cookies: SimpleCookie) -> None:
        """Keep what an answer sets."""
        for name, cookie in cookies.items():
            age = cookie["max-age"]
            end = time.monotonic() + int(age) if age != "" else float("inf")
            self._cookies[name] = (cookie.value, end)


class Sender(Protocol):
    """Sends requests; each thread may use the same one."""

    def send(self, jar: Jar, method: str, path: str) -> dict[str, Any]:
        """Return what the site answers."""


class Here:
    """The whole of Django, and no server around it."""

    def __init__(self) -> None:
        from django.core.handlers.wsgi import WSGIHandler, WSGIRequest

        self._handler = WSGIHandler()
        self._request_class = WSGIRequest

    def send(self, jar: Jar, method: str, path: str) -> dict[str, Any]:
        """Return what the site answers."""
        path, _, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "HTTP_COOKIE": jar.header(),
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.url_scheme": "http",
        }
        response: Any = self._handler.get_response(self._request_class(environ))
        jar.take(response.cookies)
        return _content(response.status_code, response.content)


class Http:
    """A site on a loopback port, with one connection for each thread."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._local = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close all connections."""
        for connection in self._opened:
            connection.close()

    def send(self, jar: Jar, method: str, path: str) -> dict[str, Any]:
        """Return what the site answers."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(
                self._address, timeout=30
            )
            self._opened.append(connection)
        try:
            connection.request(
                method, path, headers={"Cookie": jar.header(), "Content-Length": "0"}
            )
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            self._local.connection = None
            raise
        jar.take(_cookies(response.msg.get_all("Set-Cookie") or []))
        return _content(response.status, content)


class AnswerError(Exception):
    """The site has failed."""


def _content(status: int, content: bytes) -> dict[str, Any]:
    if status not in (200, 302):
        message = f"The site answered {status}: {content[:500].decode(errors='replace')}"
        raise AnswerError(message)
    found: dict[str, Any] = json.loads(content)
    return found


def _cookies(headers: Iterable[str]) -> SimpleCookie:
    cookies = SimpleCookie()
    for header in headers:
        cookies.load(header)
    return cookies
