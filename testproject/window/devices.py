"""A browser of one user on one of the sites, and the page that it shows."""

from __future__ import annotations

import html
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from django_replica_router.policy import Reason
from testproject.demo.browser import LOGIN, user_on_page

PRIMARY = "default"
PATIENCE_SECONDS = 10.0

heading_on_page = re.compile(r"<h1>(.*?)</h1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the three sites.

    Args:
        routing: random, pin or package.
        title: what the visitor knows it by.
        told: how it routes, in one sentence.
        url: its address, without a slash at the end.
        cookies: what the names of its cookies begin with.
    """

    routing: str
    title: str
    told: str
    url: str
    cookies: str


@dataclass(frozen=True, slots=True)
class Query:
    """A statement of the page, which server ran it, and why."""

    server: str
    statement: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Page:
    """What a browser shows in the end."""

    address: str
    status: int
    heading: str
    user: str
    queries: Sequence[Query]

    @property
    def is_sign_in(self) -> bool:
        """Return whether it is the page that asks who one is."""
        return self.address.startswith(LOGIN)


class NoPageError(Exception):
    """The site gave no answer in time."""


class Device:
    """A browser of one user on one site."""

    def __init__(self, copy: Copy, context: ssl.SSLContext, session: str = "") -> None:
        self._copy = copy
        self._client = httpx.Client(
            base_url=copy.url,
            verify=context,
            trust_env=False,
            timeout=PATIENCE_SECONDS,
            follow_redirects=True,
            # A new connection for each request, so that any worker process may answer it.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        if session:
            host = self._client.base_url.host
            self._client.cookies.set(f"{copy.cookies}sessionid", session, domain=host)

    def open(self, path: str) -> Page:
        """Open a page."""
        return self._send("GET", path)

    def submit(self, path: str, form: Mapping[str, str]) -> Page:
        """Send a form, and go where the answer leads."""
        name = f"{self._copy.cookies}csrftoken"
        if name not in self._client.cookies:
            self.open(LOGIN)
        token = self._client.cookies.get(name) or ""
        return self._send("POST", path, data=dict(form), headers={"X-CSRFToken": token})

    def close(self) -> None:
        """Close it for good."""
        self._client.close()

    def _send(self, method: str, path: str, **arguments: Any) -> Page:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise NoPageError(str(error) or type(error).__name__) from error
        user = user_on_page.search(response.text)
        heading = heading_on_page.search(response.text)
        return Page(
            address=response.url.path,
            status=response.status_code,
            heading=html.unescape(heading[1]) if heading else "",
            user=user[1] if user else "",
            queries=[
                _query(self._copy.routing, *query)
                for hop in _hops_of_page(response)
                for query in json.loads(hop.headers.get("X-Queries", "[]"))
            ],
        )


def _hops_of_page(response: httpx.Response) -> list[httpx.Response]:
    """Return what led to the page after a form was taken; who is sent to sign in asked for another."""
    hops = [*response.history, response]
    return [hop for hop in hops if hop.request.method == "GET"] or hops


def _query(routing: str, alias: str, verb: str, table: str, reason: str) -> Query:
    server = "primary" if alias == PRIMARY else alias
    return Query(server, f"{verb} {table}".strip(), reason, _sentence(routing, alias, reason))


def _sentence(routing: str, alias: str, reason: str) -> str:
    if reason in Reason.__members__:
        return Reason[reason].value
    if alias != PRIMARY:
        return "drawn by lot" if routing == "random" else "not pinned: drawn by lot"
    return "this browser wrote within the last 15 s" if routing == "pin" else "writes go here"
