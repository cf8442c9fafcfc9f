"""What a visitor makes of a page."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from testproject.window.devices import Page

NEWCOMER, READER = "linus", "grace"


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
    """Tell whether a page shows the title that was saved a moment ago."""
    if page.heading == title:
        return Verdict("good", "The change is there", f"Saved: {title}. The page shows it.")
    shown = f"Saved: {title}. The page shows: {page.heading or 'nothing'}."
    return _failure(page) or Verdict("stale", "The change is not there", shown)


def judge_sign_in(page: Page) -> Verdict:
    """Tell whether a page knows who has signed in a moment ago."""
    if page.user == NEWCOMER:
        return Verdict("good", "Signed in", f"The page greets {NEWCOMER}.")
    return _failure(page) or Verdict("error", "An odd page", f"Status {page.status}.")


def judge_reading(page: Page) -> Verdict:
    """Tell whether there is a page at all."""
    if page.user == READER:
        replicas = sum(query.server != "primary" for query in page.queries)
        read = f"Replicas served {replicas} of {len(page.queries)} queries."
        return Verdict("good", "The page is there", read)
    return _failure(page) or Verdict("error", "An odd page", f"Status {page.status}.")


def _failure(page: Page) -> Verdict | None:
    if page.status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Verdict("error", "The site fails", f"Error {page.status}: a server is not there.")
    if page.is_sign_in:
        return Verdict(
            "logged-out", "Signed out again", "The right password, and the sign-in page once more."
        )
    return None
