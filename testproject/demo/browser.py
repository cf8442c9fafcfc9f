"""One device of a visitor: a cookie jar that speaks HTTP and reads what the pages say."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

from testproject.demo.tally import Tally

LOGIN = "/login/"
TIMEOUT_SECONDS = 15.0

user_on_page = re.compile(r'<body data-user="([^"]*)"')
note_on_page = re.compile(r'data-note="(\d+)" data-version="(\d+)"')
note_in_path = re.compile(r"/notes/(\d+)/")
remembered_on_page = re.compile(r"This session remembers <b>(\w+)</b>")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a visitor reads in the last answer of a request and its redirects."""

    asked: str
    status: int
    signed_in_as: str | None
    accepted: bool
    """The first answer was a redirect to anything but the sign-in page."""
    note_redirected_to: int | None
    text: str
    values: Mapping[str, Any]

    def versions(self) -> dict[int, int]:
        """Return the version of each note that is shown."""
        if "version" in self.values:
            return {self.values["id"]: self.values["version"]}
        return {int(note): int(version) for note, version in note_on_page.findall(self.text)}

    def remembered(self) -> int:
        """Return what the session remembers; -1 for nothing, which is older than any number."""
        if self.values:
            value = self.values["session_value"]
            return -1 if value is None else int(value)
        found = remembered_on_page.search(self.text)
        return int(found[1]) if found and found[1].isdigit() else -1


class NoAnswerError(Exception):
    """The request failed or was answered with a server error."""


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return the one context for all clients: making one takes longer than many requests."""
    return ssl.create_default_context()


class Browser:
    """A cookie jar on one site."""

    def __init__(self, url: str, tally: Tally) -> None:
        self._tally = tally
        self._client = httpx.Client(
            base_url=url,
            verify=_ssl_context(),
            trust_env=False,
            timeout=TIMEOUT_SECONDS,
            # A new connection for each request, so that any worker process may answer it.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def resume_session(self, session_key: str) -> None:
        """Be signed in since another day."""
        host = self._client.base_url.host
        self._client.cookies.set("sessionid", session_key, domain=host)

    def get(self, path: str, *, quiet: bool) -> Answer:
        """Read a page."""
        return self._visit("GET", path, None, quiet=quiet, follow=True)

    def post(self, path: str, data: Mapping[str, object], *, follow: bool = True) -> Answer:
        """Send a form and follow the redirect."""
        if "csrftoken" not in self._client.cookies:
            self.get(LOGIN, quiet=False)
        return self._visit("POST", path, data, quiet=False, follow=follow)

    def _visit(
        self,
        method: str,
        path: str,
        data: Mapping[str, object] | None,
        *,
        quiet: bool,
        follow: bool,
    ) -> Answer:
        token = self._client.cookies.get("csrftoken") or ""
        try:
            response = self._client.request(
                method,
                path,
                data=None if data is None else dict(data),
                headers={"X-CSRFToken": token},
                follow_redirects=follow,
            )
        except httpx.HTTPError as error:
            raise NoAnswerError(f"{method} {path}: {error!r}.") from error
        for hop in [*response.history, response]:
            self._count(hop, quiet=quiet)
        if response.status_code >= httpx.codes.BAD_REQUEST and response.status_code != 404:
            raise NoAnswerError(f"{method} {path}: answered with {response.status_code}.")
        return _read(response)

    def _count(self, hop: httpx.Response, *, quiet: bool) -> None:
        self._tally.workers.add(hop.headers.get("X-Worker", "unknown"))
        if hop.request.method == "POST":
            self._tally.write_seconds.append(hop.elapsed.total_seconds())
            return
        self._tally.read_seconds.append(hop.elapsed.total_seconds())
        for alias, number in _reads_by_alias(hop.headers.get("X-Reads", "")):
            self._tally.served[alias] += number
            if quiet:
                self._tally.served_quiet[alias] += number


def _reads_by_alias(header: str) -> list[tuple[str, int]]:
    pairs = (item.partition("=") for item in header.split(", ") if item)
    return [(alias, int(number)) for alias, _, number in pairs]


def _read(response: httpx.Response) -> Answer:
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    values = response.json() if is_json else {}
    found = user_on_page.search(response.text)
    first = [*response.history, response][0]
    redirected_to = first.headers.get("Location", "")
    note = note_in_path.fullmatch(redirected_to)
    return Answer(
        asked=f"{first.request.method} {first.url.path}",
        status=response.status_code,
        signed_in_as=values.get("username") if is_json else (found[1] if found else None),
        accepted=first.is_redirect and not redirected_to.startswith(LOGIN),
        note_redirected_to=int(note[1]) if note else None,
        text=response.text,
        values=values,
    )
