"""People who use an application over HTTP, and what each of their steps has shown."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

import mechanicalsoup
import requests

from applications.pages import shown, without_changes
from testproject.cluster import ProgramError

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has shown.

    Args:
        who: the person.
        does: what they did.
        status: of the last answer.
        path: where that was, after redirects, without what differs from run to run.
        lines: what it shows.
        reads: SELECTs by alias, of all answers to the step.
    """

    who: str
    does: str
    status: int
    path: str
    lines: list[str]
    reads: Counter[str]

    def difference(self, other: Step) -> str:
        """Return a sentence on what another run of the same step has shown differently, or nothing."""
        if (self.status, self.path) != (other.status, other.path):
            return f"{self.status} {self.path}, and not {other.status} {other.path}"
        if self.lines == other.lines:
            return ""
        mine = Counter(self.lines) - Counter(other.lines)
        theirs = Counter(other.lines) - Counter(self.lines)
        return f"{self.path}: {list(mine)[:5]}, and not {list(theirs)[:5]}"


@dataclass(slots=True)
class Visit:
    """All steps of all people.

    Args:
        url: of the site, without a slash at the end.
        pace: seconds from one step to the next.
        catch_up: waits until replicas have all that was written.
    """

    url: str
    pace: float
    catch_up: Callable[[], None]
    steps: list[Step] = field(default_factory=list)

    def person(self, name: str, *, pace: float | None = None) -> Person:
        """Return somebody with a browser of their own.

        Args:
            name: of the person.
            pace: where it is not that of all: several readers at once make steps sooner.
        """
        return Person(name, self, self.pace if pace is None else min(pace, self.pace))


class Person:
    """Somebody with a browser.

    Args:
        name: of the person.
        visit: keeps what they are shown.
        pace: seconds from one of their steps to the next.
    """

    def __init__(self, name: str, visit: Visit, pace: float) -> None:
        self._name = name
        self._visit = visit
        self._pace = pace
        self._browser = mechanicalsoup.StatefulBrowser(user_agent="Mozilla/5.0 (applications)")
        self._browser.session.trust_env = False

    @property
    def page(self) -> Any:
        """Return the present page, as a ``BeautifulSoup``."""
        return self._browser.page

    @property
    def path(self) -> str:
        """Return the path of the present page, with its query."""
        return _path(self._browser.url)

    def open(self, path: str) -> Step:
        """Open a page."""
        return self._keep(
            f"opens {path}", lambda: self._browser.open(self._at(path), timeout=TIMEOUT_SECONDS)
        )

    def follow(self, pattern: str) -> Step:
        """Follow the first link whose address fits a regular expression.

        Raises:
            ProgramError: there is none on the page.
        """
        return self.open(self.address(pattern))

    def address(self, pattern: str) -> str:
        """Return the first address of a link on the page that fits a regular expression.

        Raises:
            ProgramError: there is none.
        """
        for link in self.page.find_all("a", href=re.compile(pattern)):
            return str(link["href"])
        raise ProgramError(
            f"{self._name}, at {self.path}: no link like {pattern!r}. {self._around()}"
        )

    def submit(
        self, values: Mapping[str, Any], *, form: str = "form", button: str | None = None
    ) -> Step:
        """Fill in a form of the page, and send it.

        Args:
            values: by the names of its fields; True and False check and uncheck a box, an open
                file is uploaded.
            form: a CSS selector.
            button: the name of the button, of which the value may stand after ``=``, as in ``action=publish``.
        """
        selected = self._select(form)
        for name, value in values.items():
            selected.set(name, value, force=True)
        if button is not None:
            self._choose(selected, button)
        return self._keep(
            f"submits {form} of {self.path}",
            lambda: self._browser.submit_selected(btnName=None, timeout=TIMEOUT_SECONDS),
        )

    def post(self, path: str, values: Mapping[str, str]) -> Step:
        """Send values without a form, as a script of the page does.

        Args:
            path: where to.
            values: what is sent.
        """
        address = self._at(path)
        token = self._browser.session.cookies.get("csrftoken", "")
        headers = {"X-CSRFToken": token, "Referer": address}
        return self._keep(
            f"posts to {path}",
            lambda: self._browser.post(
                address, data=values, headers=headers, timeout=TIMEOUT_SECONDS
            ),
        )

    def _choose(self, selected: Any, button: str) -> None:
        name, _, value = button.partition("=")
        selector = f'[name="{name}"]' + (f'[value="{value}"]' if value else "")
        found = selected.form.select_one(f"button{selector}, input{selector}")
        if found is None:
            raise ProgramError(f"{self._name}, at {self.path}: no button {button!r}.")
        selected.choose_submit(found)

    def _select(self, form: str) -> Any:
        try:
            return self._browser.select_form(form)
        except mechanicalsoup.LinkNotFoundError as error:
            raise ProgramError(
                f"{self._name}, at {self.path}: no form {form!r}. {self._around()}"
            ) from error

    def _keep(self, does: str, act: Callable[[], requests.Response]) -> Step:
        started = time.monotonic()
        response = act()
        reads: Counter[str] = Counter()
        for answer in [*response.history, response]:
            reads += _reads(answer)
        lines = shown(response.text) if "html" in response.headers.get("Content-Type", "") else []
        path = without_changes(_path(response.url))
        step = Step(self._name, does, response.status_code, path, lines, reads)
        self._visit.steps.append(step)
        # People pause to read. What they were shown has all that they are to see by then.
        time.sleep(max(0.0, self._pace - (time.monotonic() - started)))
        return step

    def _at(self, path: str) -> str:
        if path.startswith("http"):
            return path
        if path.startswith("/"):
            return self._visit.url + path
        return urljoin(str(self._browser.url), path)

    def _around(self) -> str:
        return " ".join(self.page.get_text(" ", strip=True).split())[:600] if self.page else ""


def _path(url: str) -> str:
    return "/" + url.split("/", 3)[3] if url.count("/") > 2 else url


def _reads(answer: requests.Response) -> Counter[str]:
    """Return what the meter has counted: ``default=1, replica2=3``."""
    pairs = [part.split("=") for part in answer.headers.get("X-Reads", "").split(", ") if part]
    return Counter({alias: int(number) for alias, number in pairs})
