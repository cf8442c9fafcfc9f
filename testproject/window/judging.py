"""What a visitor makes of a page."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from testproject.window.devices import Page

NEWCOMER = "linus"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a visitor makes of a page.

    Args:
        outcome: "good", "stale", "logged-out" or "error".
        headline: the same in a few words.
        detail: what was expected, and what was there.
    """

    outcome: str
    headline: str
    detail: str


def judge_note(page: Page, title: str) -> Verdict:
    """Tell whether a page shows the title that was saved last."""
    if page.heading == title:
        return Verdict("good", "The change is there", _served_by(page))
    shown = f"Saved: {title}. Shown: {page.heading or 'nothing'}. {_served_by(page)}"
    return _failure(page) or Verdict("stale", "The change is not there", shown)


def judge_sign_in(page: Page) -> Verdict:
    """Tell whether a page knows who has signed in a moment ago."""
    if page.user == NEWCOMER:
        return Verdict("good", "Signed in", _served_by(page))
    return _failure(page) or Verdict("error", "An odd page", f"Status {page.status}.")


def _failure(page: Page) -> Verdict | None:
    if page.status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Verdict(
            "error", "The site fails", f"Error {page.status} instead of a page. {_asked_last(page)}"
        )
    if page.is_sign_in:
        detail = f"The password was right; the session is not there. {_served_by(page)}"
        return Verdict("logged-out", "Signed out again", detail)
    return None


def _asked_last(page: Page) -> str:
    return f"The last query was for {page.queries[-1].server}." if page.queries else ""


def _served_by(page: Page) -> str:
    names = dict.fromkeys(query.server for query in page.queries)
    servers = ["the primary" if name == "primary" else name for name in names]
    return f"Read from {' and '.join(servers)}." if servers else ""
