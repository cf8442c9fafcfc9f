"""The shop window as its visitor uses it: starts the demonstration, and presses buttons in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from playwright.sync_api import Browser, Locator, Page, expect

from testproject.cluster.programs import running_program

END_SECONDS = 30.0
PATIENCE_MS = 30_000
VISITS_MS = 90_000
"""For the many visits of one button, on a machine that is busy."""

REPLICAS = ("replica1", "replica2")
STORIES = ("save", "login", "phone", "read")


@contextmanager
def running_window(*arguments: str) -> Iterator[str]:
    """Run the demonstration for the length of the block, and give the address of its window."""
    with running_program(
        [sys.executable, "-m", "testproject", "serve", *arguments],
        timeout=END_SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield address_of(process)


def address_of(process: subprocess.Popen[str]) -> str:
    """Return the first address that the process prints, once it answers there.

    Raises:
        RuntimeError: it ends without one.
    """
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://\S+/", line):
            return found[0]
    raise RuntimeError("The demonstration did not start: " + "".join(said))


class Caller:
    """Asks the window without a browser, as a script would.

    Args:
        url: of the window.
    """

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=60.0)
        self.client.get("/")

    def post(self, path: str, **form: object) -> httpx.Response:
        """Send a form with the token that the page had brought."""
        token = self.client.cookies["window_csrftoken"]
        return self.client.post(path, data=form, headers={"X-CSRFToken": token})

    def tell(self, story: str) -> dict[str, dict[str, Any]]:
        """Have a story told, and return what came of it by the routing of each site."""
        answer = self.post(f"/stories/{story}/").raise_for_status().json()
        return {site["routing"]: site for site in answer["sites"]}

    def close(self) -> None:
        """Close its connections."""
        self.client.close()


class Window:
    """The page in a browser. All that it did not expect is in ``complaints``.

    Args:
        browser: which one.
        url: of the window.
        options: of the browser's context, such as the size of its viewport.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.complaints: list[str] = []
        self._context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}} | options
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._require_own(request.url, url))
        self.page.goto(url)
        for name in REPLICAS:
            expect(self.state_of(name)).not_to_have_text("…", timeout=PATIENCE_MS)

    def _require_own(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:")):
            self.complaints.append(f"{address} was asked for, which is not on this machine.")

    def close(self) -> None:
        """Close the page and forget its cookies."""
        self._context.close()

    def tell(self, story: str) -> dict[str, str]:
        """Press a story's button, and return the outcome on each site."""
        with self.page.expect_response(f"**/stories/{story}/") as answer:
            self.page.locator(f"[data-story={story}]").click()
        return self._outcomes(answer.value.json())

    def _outcomes(self, told: dict[str, Any]) -> dict[str, str]:
        outcomes = {site["routing"]: site["outcome"] for site in told["sites"]}
        for routing, outcome in outcomes.items():
            expect(self.site(routing)).to_have_attribute("data-outcome", outcome)
        return outcomes

    def visit_often(self) -> None:
        """Press the button for many visits, and wait until they are over."""
        button = self.page.locator("#again")
        button.click()
        expect(button).to_have_text("Stop")
        expect(button).to_have_text(re.compile("visits"), timeout=VISITS_MS)

    def site(self, routing: str) -> Locator:
        """Return the card of a site."""
        return self.page.locator(f"#site-{routing}")

    def headline(self, routing: str) -> Locator:
        """Return what a visitor makes of a site's page."""
        return self.site(routing).locator(".headline")

    def servers_of(self, routing: str) -> set[str]:
        """Return who served the last page of a site."""
        return set(self.site(routing).locator(".queries .pill").all_text_contents())

    def server(self, name: str) -> Locator:
        """Return the card of a server."""
        return self.page.locator(f"#server-{name}")

    def state_of(self, name: str) -> Locator:
        """Return what is said of a server."""
        return self.server(name).locator(".state")

    def move(self, name: str, button: str, *, until: str) -> None:
        """Press a button of a server, and wait until it is in that state."""
        self.server(name).get_by_role("button", name=button, exact=True).click()
        expect(self.server(name)).to_have_attribute("data-state", until, timeout=PATIENCE_MS)

    def reset(self) -> None:
        """Bring all servers back to how they were."""
        self.page.locator("#reset").click()
        expect(self.page.locator("#said")).to_contain_text("at the start", timeout=PATIENCE_MS)
