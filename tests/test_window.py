"""The shop window, played through in a real browser as its visitor would."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import httpx
import pytest
from playwright.sync_api import Browser, expect

from testproject.window.views import MOST_STREAMS
from tests.chromium import require_chromium, running_chromium
from tests.conftest import wait_until
from tests.window import PATIENCE_MS, REPLICAS, Caller, Window, running_window

TRIES = 20
"""A random replica is the dead one in one of two queries, and a page has five."""

SECONDS = 30.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a window whose replicas replay at once."""
    with running_window("--lag", "0", "--workers", "1") as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser."""
    with running_chromium(require_chromium()) as browser:
        yield browser


@pytest.fixture
def caller(url: str) -> Iterator[Caller]:
    """Who asks the window without a browser; the servers are as they were at the start."""
    caller = Caller(url)
    assert caller.post("/reset/").status_code == httpx.codes.OK
    yield caller
    caller.close()


@pytest.fixture
def window(browser: Browser, url: str, caller: Caller) -> Iterator[Window]:
    """The page on a desk. It asks nobody but its own server, and no script of it fails."""
    window = Window(browser, url)
    yield window
    window.close()
    assert window.complaints == []


def stand_still(window: Window) -> None:
    """Have no replica replay any more, so that what is saved now is on none."""
    for name in REPLICAS:
        window.move(name, "Pause", until="paused")


def test_the_stale_page_and_the_lost_login_are_seen_and_gone(window: Window) -> None:
    """A random replica shows both, a pin shows one on another device, the package shows none."""
    stand_still(window)

    assert window.tell("save") == {"random": "stale", "pin": "good", "package": "good"}
    expect(window.headline("random")).to_have_text("The change is not there")
    expect(window.headline("package")).to_have_text("The change is there")
    assert window.servers_of("random") <= set(REPLICAS)
    assert window.servers_of("package") == {"primary"}

    assert window.tell("phone") == {"random": "stale", "pin": "stale", "package": "good"}
    assert window.tell("login") == {"random": "logged-out", "pin": "good", "package": "good"}
    expect(window.site("random").locator(".shown")).to_contain_text("nobody is signed in")
    expect(window.site("random").locator("[data-count=stale]")).to_have_text("2")
    expect(window.site("package").locator("[data-count=stale]")).to_have_text("0")


def read_until(window: Window, wanted: Callable[[], bool], what: str) -> None:
    """Go on reading, a few times a second, until a page is as wanted."""
    deadline = time.monotonic() + SECONDS
    window.tell("read")
    while not wanted():
        assert time.monotonic() < deadline, f"In vain: {what}."
        window.page.wait_for_timeout(100)
        window.tell("read")


def test_replicas_serve_again_once_they_have_caught_up(window: Window) -> None:
    """Who goes on reading is served by replicas with the package, and by the primary with the pin."""
    stand_still(window)
    window.tell("save")
    assert window.servers_of("package") == {"primary"}
    for name in REPLICAS:
        window.move(name, "Resume", until="replica")

    read_until(
        window, lambda: window.servers_of("package") <= set(REPLICAS), "a page from replicas alone"
    )
    expect(window.headline("package")).to_have_text("The change is there")
    expect(window.site("package").locator(".why")).to_have_text(
        "CAUGHT_UP: the replica has replayed the token"
    )


def test_a_dead_replica_fails_who_does_not_look(window: Window) -> None:
    """A random replica is the dead one soon; the package answers each time, and the replica comes back."""
    window.move("replica2", "Kill", until="down")
    expect(window.state_of("replica2")).to_have_text("down")

    outcomes = [window.tell("save")]
    while outcomes[-1]["random"] != "error":
        assert len(outcomes) < TRIES, "The dead replica is never drawn."
        outcomes.append(window.tell("save"))
    assert {outcome["package"] for outcome in outcomes} == {"good"}
    expect(window.site("random").locator(".shown")).to_contain_text("Server Error")

    window.move("replica2", "Start", until="replica")
    read_until(
        window, lambda: "replica2" in window.servers_of("random"), "a page from that replica"
    )


def test_a_promoted_replica_is_left_out(window: Window) -> None:
    """What is promoted gets no writes any more; the package leaves it, and a random replica does not."""
    window.move("replica1", "Promote", until="promoted")
    outcomes = [window.tell("save") for _ in range(5)]
    assert {outcome["package"] for outcome in outcomes} == {"good"}
    assert "replica1" not in window.servers_of("package")
    read_until(
        window,
        lambda: window.headline("random").inner_text() == "The change is not there",
        "an old page from the promoted replica",
    )

    window.move("replica1", "Make it a replica again", until="replica")
    expect(window.page.locator("#said")).to_have_text("replica1 is a fresh copy of the primary.")


def test_cut_off_replica_falls_behind(window: Window) -> None:
    """Its lag grows on the page, and is gone when it is connected again."""
    lag = window.server("replica1").locator(".lag b")
    window.move("replica1", "Cut the line", until="cut")
    expect(lag).to_have_text(re.compile(r"^[1-9]"), timeout=PATIENCE_MS)
    window.move("replica1", "Reconnect", until="replica")
    expect(lag).to_have_text(re.compile(r"^0"), timeout=PATIENCE_MS)


def test_everything_is_done_by_keyboard(window: Window) -> None:
    """Tab, Enter and arrows reach stories, delays and servers; the focus is seen, and stays."""
    page = window.page
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    expect(focused).to_have_text("Save, then look")
    assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(window.headline("package")).to_have_text("The change is there")
    expect(page.locator("#heard")).to_contain_text("django-replica-router: the change is there.")

    for _ in range(5):
        page.keyboard.press("Tab")
    expect(focused).to_have_attribute("name", "delay-replicas")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#said")).to_contain_text("0.1 s late on replica1 and replica2")
    expect(window.server("replica2").locator("input[value='100']")).to_be_checked()

    window.server("replica1").get_by_role("button", name="Kill").focus()
    page.keyboard.press("Enter")
    expect(focused).to_have_text("Start", timeout=PATIENCE_MS)
    page.keyboard.press("Space")
    expect(focused).to_have_text("Kill", timeout=PATIENCE_MS)


def test_a_phone_shows_it_all_without_scrolling_aside(
    browser: Browser, url: str, caller: Caller
) -> None:
    """At 390 pixels nothing is wider than the page, and what each site showed is told in words."""
    with closing(Window(browser, url, viewport={"width": 390, "height": 844})) as window:
        stand_still(window)
        assert window.tell("save")["random"] == "stale"
        expect(window.page.locator("#heard")).to_be_visible()
        expect(window.page.locator("#heard")).to_contain_text(
            "Random replica: the change is not there."
        )
        width = "document.documentElement.scrollWidth"
        assert window.page.evaluate(width) == 390


def test_many_visits_are_counted_and_can_be_stopped(window: Window) -> None:
    """The button for many visits ends them when it is pressed again; what they saw is summed up."""
    again = window.page.locator("#again")
    pages = window.site("package").locator("[data-count=pages]")
    again.click()
    # A look may come too late for any one number.
    expect(pages).to_have_text(re.compile(r"^([2-9]|1\d)$"), timeout=PATIENCE_MS)
    again.click()
    expect(again).to_have_text("20 visits", timeout=PATIENCE_MS)
    assert int(pages.inner_text()) < 20
    expect(window.page.locator("#heard")).to_contain_text("django-replica-router: 0 bad of")


def test_only_the_page_itself_moves_servers(caller: Caller) -> None:
    """A form without the page's token, another host, a GET and an unknown name are refused."""
    client = caller.client
    assert client.post("/servers/replica1/kill/").status_code == httpx.codes.FORBIDDEN
    evil = client.get("/", headers={"Host": "elsewhere.example"})
    assert evil.status_code == httpx.codes.BAD_REQUEST
    assert client.get("/reset/").status_code == httpx.codes.METHOD_NOT_ALLOWED
    for path in ("/servers/replica9/kill/", "/servers/primary/promote/", "/stories/none/"):
        assert caller.post(path).status_code == httpx.codes.NOT_FOUND
    assert caller.post("/servers/replicas/delay/", ms=7).status_code == httpx.codes.NOT_FOUND
    refused = caller.post("/servers/replica1/start/")
    assert refused.status_code == httpx.codes.CONFLICT
    assert refused.json() == {"said": "replica1 runs already."}


def test_streams_are_few_and_give_their_place_back(caller: Caller) -> None:
    """One window too many is refused, until another is closed."""

    def opens(stack: ExitStack) -> bool:
        answer = stack.enter_context(caller.client.stream("GET", "/events/"))
        return answer.status_code == httpx.codes.OK

    with ExitStack() as held:
        for _ in range(MOST_STREAMS):
            # The pages of other tests are closed, which their streams may not have noticed yet.
            wait_until(lambda: opens(held), "a stream of a closed page to end")
        assert not opens(held)
    with ExitStack() as held:
        wait_until(lambda: opens(held), "a closed stream to give its place back")
