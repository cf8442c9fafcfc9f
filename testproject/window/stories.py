"""The stories: what a visitor does on each of the three sites, and what the page then shows."""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import httpx

from testproject.demo.browser import LOGIN
from testproject.demo.site import PASSWORD, Account
from testproject.window.devices import PATIENCE_SECONDS, Copy, Device, NoPageError, Page
from testproject.window.errors import UnknownError
from testproject.window.judging import (
    NEWCOMER,
    Verdict,
    judge_note,
    judge_sign_in,
)

WRITER = "ada"
NAMES = [WRITER, NEWCOMER, "grace"]
WRITING = {"save", "phone"}
WARM_UP_SECONDS = 15.0
WARM_PAGES = 8
"""Pages in a row that replicas served: any of the workers may answer each."""

DEVICES = 2
"""Of each user on each site: a laptop and a phone."""


@dataclass(frozen=True, slots=True)
class Story:
    """Something to try.

    Args:
        name: in its address.
        button: what the button says.
        told: what happens, for the visitor.
    """

    name: str
    button: str
    told: str


STORIES = {
    story.name: story
    for story in [
        Story(
            "save",
            "Save, then look",
            "Ada changes her note. The site saves it and sends her to the note.",
        ),
        Story("login", "Sign in", "Linus signs in. The site sends him to his notes."),
        Story(
            "phone",
            "Save, look on the phone",
            "Ada changes her note on her laptop, and opens it on her phone.",
        ),
        Story("read", "Read on", "Ada opens her note once more, on her laptop."),
    ]
}


class Visitors:
    """Ada and Linus on one of the sites, with the devices that Ada keeps."""

    def __init__(
        self,
        copy: Copy,
        context: ssl.SSLContext,
        *,
        note: int,
        title: str,
        sessions: Sequence[str],
    ) -> None:
        self.copy = copy
        self._context = context
        self._path = f"/notes/{note}/"
        self._saved = title
        self._laptop, self._phone = (Device(copy, context, session) for session in sessions)

    def save(self, title: str) -> tuple[Page, Verdict]:
        """Change the note, and look at it where the site leads."""
        page = self._save(title)
        return page, judge_note(page, title)

    def phone(self, title: str) -> tuple[Page, Verdict]:
        """Change the note on one device, and look at it on another."""
        saved = self._save(title)
        if saved.status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return saved, judge_note(saved, title)
        page = self._phone.open(self._path)
        return page, judge_note(page, title)

    def login(self, title: str) -> tuple[Page, Verdict]:
        """Sign in with a browser that has never been here."""
        device = Device(self.copy, self._context)
        try:
            page = device.submit(LOGIN, {"username": NEWCOMER, "password": PASSWORD})
        finally:
            device.close()
        return page, judge_sign_in(page)

    def read(self, title: str) -> tuple[Page, Verdict]:
        """Open the note as it was saved last."""
        page = self._laptop.open(self._path)
        return page, judge_note(page, self._saved)

    def _save(self, title: str) -> Page:
        page = self._laptop.submit(f"{self._path}edit/", {"title": title})
        if page.status < httpx.codes.INTERNAL_SERVER_ERROR:
            self._saved = title
        return page

    def arrive(self) -> None:
        """Open the note on the phone, whose session is known from then on."""
        self._phone.open(self._path)

    def close(self) -> None:
        """Close all their devices."""
        self._laptop.close()
        self._phone.close()


class Stories:
    """Tells the stories on all sites at the same time, one story after the other.

    Args:
        sites: the three of them.
        accounts: the users, with sessions for each device on each site.
    """

    def __init__(self, sites: Sequence[Copy], accounts: Sequence[Account]) -> None:
        self.sites = sites
        [writer] = [account for account in accounts if account.name == WRITER]
        context = ssl.create_default_context()
        self._visitors = [
            Visitors(
                site,
                context,
                note=writer.notes[number],
                title=f"Note {number + 1} of {WRITER}",
                sessions=writer.sessions[number * DEVICES : (number + 1) * DEVICES],
            )
            for number, site in enumerate(sites)
        ]
        self._numbers = itertools.count(1)
        self._telling = Lock()

    def tell(self, name: str) -> dict[str, Any]:
        """Return what the visitor of a story saw on each site.

        Raises:
            UnknownError: there is no such story.
        """
        if name not in STORIES:
            raise UnknownError(f"There is no story {name!r}.")
        with self._telling, ThreadPoolExecutor(len(self._visitors)) as pool:
            title = f"Change {next(self._numbers)}" if name in WRITING else ""
            told = pool.map(lambda visitors: _tell(visitors, name, title), self._visitors)
            return {"story": name, "told": STORIES[name].told, "sites": list(told)}

    def warm_up(self) -> None:
        """Open pages until the sites know the replicas, as those of a site that runs do.

        A worker process looks at the replicas from its first request on, and has the primary serve
        until it has.
        """
        deadline = time.monotonic() + WARM_UP_SECONDS
        in_a_row = 0
        while in_a_row < WARM_PAGES and time.monotonic() < deadline:
            told = self.tell("read")["sites"]
            served_by = [query["server"] for site in told for query in site["page"]["queries"]]
            in_a_row = in_a_row + 1 if "primary" not in served_by else 0
        for visitors in self._visitors:
            visitors.arrive()

    def close(self) -> None:
        """Close all browsers."""
        for visitors in self._visitors:
            visitors.close()


def _tell(visitors: Visitors, name: str, title: str) -> dict[str, Any]:
    act: Callable[[str], tuple[Page, Verdict]] = getattr(visitors, name)
    try:
        page, verdict = act(title)
    except NoPageError as error:
        page = Page("", 0, "", "", [])
        verdict = Verdict("error", "No answer", f"Waited {PATIENCE_SECONDS:.0f} s: {error}")
    return {"routing": visitors.copy.routing, "page": asdict(page), **asdict(verdict)}
