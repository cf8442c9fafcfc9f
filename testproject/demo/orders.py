"""Who sees an order: commands, queries, a task and a second service, while the replicas are behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.table import Table

from testproject.cluster import Cluster
from testproject.demo.browser import NoAnswerError
from testproject.demo.services import running_services
from testproject.demo.site import PASSWORD, prepare

CUSTOMER, STRANGER, COLLEAGUE, PACKER = NAMES = ["ada", "grace", "linus", "ken"]
WORKER, COURIER = "a worker", "a courier"
LOGIN = "/login/"
TIMEOUT_SECONDS = 30.0
SETTLE_SECONDS = 40.0
PAUSE_SECONDS = 0.1
IN_A_ROW = 4


@dataclass(frozen=True, slots=True)
class Line:
    """What one step has shown.

    Args:
        who: the actor.
        does: what they do.
        sees: what they are answered.
        reads: which servers have answered.
        promise: what they were to see; empty where nothing is promised.
        is_kept: they have seen it.
    """

    who: str
    does: str
    sees: str
    reads: str
    promise: str = ""
    is_kept: bool = True


@dataclass(slots=True)
class Stage:
    """The actors, and what they have told each other so far.

    Args:
        actors: of each name a client that is signed in.
        order: number of the order.
        token: what its customer has handed out.
        task: id of the task that ships it.
        answer: to the last request that had somebody else act.
    """

    actors: dict[str, httpx.Client] = field(default_factory=dict)
    order: int = 0
    token: str = ""
    task: str = ""
    answer: httpx.Response = field(default_factory=lambda: httpx.Response(httpx.codes.NO_CONTENT))

    def get(self, who: str, path: str, **params: str) -> httpx.Response:
        """Ask as one of the actors."""
        return self.actors[who].get(path, params=params)

    def post(self, who: str, path: str, values: Any = None) -> httpx.Response:
        """Have one of the actors do something."""
        client = self.actors[who]
        headers = {"X-CSRFToken": client.cookies.get("csrftoken") or ""}
        return client.post(path, content=json.dumps(values), headers=headers)

    @property
    def path(self) -> str:
        """Return the path of the order."""
        return f"/orders/{self.order}/"

    def wait_for_task(self) -> httpx.Response:
        """Return the customer's page that tells of the task, once that has ended."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            answer = self.get(CUSTOMER, f"{self.path}shipped/{self.task}/")
            if answer.status_code != httpx.codes.ACCEPTED:
                return answer
            if time.monotonic() > deadline:
                raise NoAnswerError(f"No worker has done the task in {SETTLE_SECONDS:.0f} s.")
            time.sleep(PAUSE_SECONDS)


def place(stage: Stage) -> Line:
    """Have the customer place an order."""
    answer = stage.post(CUSTOMER, "/orders/", {"apples": 3})
    if answer.is_success:
        stage.order, stage.token = answer.json()["id"], answer.json()["token"]
    promise = "the order is placed"
    return _line(CUSTOMER, "@command place()", answer, promise, is_kept=answer.is_success)


def look(stage: Stage) -> Line:
    """Have the customer look at it."""
    return _look(CUSTOMER, "@query describe()", stage.get(CUSTOMER, stage.path), "placed")


def look_as_a_stranger(stage: Stage) -> Line:
    """Have somebody look who has been told nothing: nothing is promised to them."""
    return _look(STRANGER, "the same query", stage.get(STRANGER, stage.path), "")


def look_with_the_token(stage: Stage) -> Line:
    """Have somebody look whom the customer has handed the token."""
    answer = stage.get(COLLEAGUE, stage.path, token=stage.token)
    return _look(COLLEAGUE, "the same query, with ada's token", answer, "placed")


def pack(stage: Stage) -> Line:
    """Have a second actor pack the order."""
    answer = stage.post(PACKER, f"{stage.path}pack/")
    promise = "the order is packed"
    return _line(PACKER, "@command Pack(): track(key)", answer, promise, is_kept=answer.is_success)


def look_by_the_key(stage: Stage) -> Line:
    """Have the customer look by the key of the order: nobody has handed them a token."""
    answer = stage.get(CUSTOMER, f"{stage.path}by-key/")
    return _look(CUSTOMER, "@query: see(key=...)", answer, "packed")


def have_it_shipped(stage: Stage) -> Line:
    """Have the second actor publish a task: what counts is what the worker finds."""
    stage.task = stage.post(PACKER, f"{stage.path}ship/").json()["task"]
    stage.answer = stage.wait_for_task()
    told = _values(stage.answer).get("worker") or {}
    return _told_of(WORKER, "task ship(), published by ken", told, "packed")


def look_after_the_task(stage: Stage) -> Line:
    """Have the customer look at a page that asks for the result of the task."""
    return _look(CUSTOMER, "@query, after the task's result", stage.answer, "shipped")


def have_it_delivered(stage: Stage) -> Line:
    """Have the shop call a second service: what counts is what that one finds."""
    stage.answer = stage.post(CUSTOMER, f"{stage.path}deliver/{stage.task}/")
    told = _values(stage.answer).get("courier") or {}
    return _told_of(COURIER, "a second service, called by the shop", told, "shipped")


def look_after_the_call(stage: Stage) -> Line:
    """Have the shop's page tell of what the second service has written."""
    return _look(CUSTOMER, "@query, after the call", stage.answer, "delivered")


def write_in_a_query(stage: Stage) -> Line:
    """Have the customer ask a query that was written wrongly."""
    answer = stage.get(CUSTOMER, f"{stage.path}counted/")
    is_refused = answer.status_code == httpx.codes.CONFLICT
    promise = "a query writes nothing"
    return _line(CUSTOMER, "@query that writes", answer, promise, is_kept=is_refused)


def look_later(stage: Stage) -> Line:
    """Have the customer look until a replica has it all, and serves."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        answer = stage.get(CUSTOMER, stage.path)
        line = _look(CUSTOMER, "@query describe(), later", answer, "delivered")
        if not line.is_kept or "default" not in line.reads or time.monotonic() > deadline:
            return line
        time.sleep(PAUSE_SECONDS)


STEPS: list[Callable[[Stage], Line]] = [
    place,
    look,
    look_as_a_stranger,
    look_with_the_token,
    pack,
    look_by_the_key,
    have_it_shipped,
    look_after_the_task,
    have_it_delivered,
    look_after_the_call,
    write_in_a_query,
    look_later,
]
"""What happens, one after the other. Each finds on the stage what the steps before have left there."""


def walk(routing: str, lag_ms: int, *, workers: int, replicas: int) -> list[Line]:
    """Take all steps on servers of their own, and return what each has shown."""
    with Cluster(replicas=replicas, cache=True, databases=("app",)) as cluster:
        prepare(cluster, NAMES)
        with running_services(cluster, routing, workers=workers) as site, ExitStack() as stack:
            stage = Stage()
            for name in NAMES:
                stage.actors[name] = stack.enter_context(_signed_in(site.url, name))
            cluster.wait_caught_up()
            _settle(stage)
            for replica in cluster.replicas:
                replica.set_delay(lag_ms / 1000)
            return [step(stage) for step in STEPS]


def _settle(stage: Stage) -> None:
    """Have everybody read on until replicas serve them: each worker has to get to know the servers first."""
    deadline = time.monotonic() + SETTLE_SECONDS
    for who in stage.actors:
        quiet = 0
        while quiet < IN_A_ROW and time.monotonic() < deadline:
            reads = stage.get(who, "/overview/").headers.get("X-Reads", "")
            quiet = 0 if "default" in reads else quiet + 1
    stage.task = stage.post(PACKER, "/orders/0/ship/").json()["task"]
    stage.wait_for_task()
    stage.post(CUSTOMER, f"/orders/0/deliver/{stage.task}/").raise_for_status()


def broken(lines: list[Line]) -> list[str]:
    """Return a sentence for each promise that was not kept."""
    return [
        f"{line.who}, {line.does}: {line.sees!r} instead of {line.promise!r}."
        for line in lines
        if not line.is_kept
    ]


def picture(lines: list[Line], routing: str, lag_ms: int) -> Table:
    """Return who saw what."""
    title = f"Who sees what, with replicas {lag_ms / 1000:g} s behind ({routing})"
    table = Table("who", "does", "read from", "sees", "promised", title=title)
    for line in lines:
        mark = "" if not line.promise else ("kept: " if line.is_kept else "BROKEN: ")
        table.add_row(
            line.who, line.does, line.reads, line.sees, mark + (line.promise or "nothing")
        )
    return table


@contextmanager
def _signed_in(url: str, name: str) -> Iterator[httpx.Client]:
    # A new connection for each request, so that any worker process may answer it.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(
        base_url=url, trust_env=False, timeout=TIMEOUT_SECONDS, limits=limits
    ) as client:
        client.get(LOGIN)
        values = {"username": name, "password": PASSWORD}
        values["csrfmiddlewaretoken"] = client.cookies.get("csrftoken") or ""
        if not client.post(LOGIN, data=values).is_redirect:
            raise NoAnswerError(f"{name} could not sign in.")
        yield client


def _look(who: str, does: str, answer: httpx.Response, state: str) -> Line:
    shown = _values(answer).get("order")
    promise = f"the order, {state}" if state else ""
    is_kept = not state or (shown is not None and shown["state"] == state)
    return _line(who, does, answer, promise, is_kept=is_kept)


def _line(who: str, does: str, answer: httpx.Response, promise: str, *, is_kept: bool) -> Line:
    return Line(who, does, _told(answer), answer.headers.get("X-Reads", ""), promise, is_kept)


def _told_of(who: str, does: str, told: dict[str, Any], state: str) -> Line:
    """Return a line on what an answer tells of somebody else: the order as they found it, and their reads."""
    order = told.get("order")
    is_kept = order is not None and order["state"] == state
    return Line(who, does, _described(order), told.get("reads", ""), f"the order, {state}", is_kept)


def _described(order: dict[str, Any] | None) -> str:
    return "nothing yet" if order is None else f"order {order['id']}, {order['state']}"


def _told(answer: httpx.Response) -> str:
    values = _values(answer)
    if "order" in values:
        return _described(values["order"])
    if "refused" in values:
        return f"WriteInQuery: {values['refused']}"
    if answer.is_redirect:
        return "signed out"
    return "done" if answer.is_success else f"HTTP {answer.status_code}"


def _values(answer: httpx.Response) -> dict[str, Any]:
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    values: dict[str, Any] = answer.json() if is_json else {}
    return values
