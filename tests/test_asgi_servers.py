"""The guarantees under each ASGI server: tasks, threads, streams and server-sent events."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from django.contrib.auth.models import User
from django.test import Client

from testproject.cluster import Cluster
from testproject.cluster.server import free_port
from testproject.notes.models import Note, Tag
from tests.conftest import stand_still, wait_until
from tests.servers import Service, daphne, granian, running, uvicorn
from tests.site import PASSWORD
from tests.test_processes import environment

SERVERS = {"uvicorn": uvicorn, "daphne": daphne, "granian": granian}


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def _server(
    request: pytest.FixtureRequest,
    real_cluster: Cluster,
    _django_on_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    port = free_port()
    command = request.param("testproject.asgi:application", port)
    log: Path = tmp_path_factory.mktemp("server") / "log"
    variables = environment(real_cluster, settings="tests.asgi_settings")
    with running(command, port, log, variables) as server:
        server.wait_until_it_answers()
        yield server
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        # No thread of the package keeps a process from ending.
        server.process.wait(timeout=30)


class Visitors(NamedTuple):
    """Two users, each with a client; both are known, and replicas have all that they have seen."""

    ann: httpx.Client
    bob: httpx.Client


def signed_in(server: Service, user: User) -> httpx.Client:
    """Return a client of the server with a session of the user's."""
    browser = Client()
    browser.force_login(user)
    cookies = {"sessionid": browser.cookies["sessionid"].value}
    return httpx.Client(base_url=server.client.base_url, cookies=cookies, timeout=30.0)


def is_served_by_replicas(client: httpx.Client) -> bool:
    """Tell whether replicas serve a client, the bare thread apart, which nobody has counted."""
    answer = client.get("/everywhere/")
    assert answer.status_code == 200, answer.text
    return "replica" in answer.headers["X-Reads"] and "default" not in answer.headers["X-Reads"]


@pytest.fixture
def visitors(_server: Service, note: Note, cluster: Cluster) -> Iterator[Visitors]:
    """Ann and Bob, while all replicas show what there was before, and nothing new."""
    bob = User.objects.create_user("bob", password=PASSWORD)
    with signed_in(_server, note.owner) as anns, signed_in(_server, bob) as bobs:
        for client in (anns, bobs):
            wait_until(lambda client=client: is_served_by_replicas(client), "a replica to serve")
        stand_still(cluster)
        yield Visitors(anns, bobs)


def titles(client: httpx.Client) -> dict[str, set[str]]:
    """Return the titles that each way to read gives."""
    answer = client.get("/everywhere/").json()
    assert answer.pop("user")
    return {
        way: set(found if isinstance(found, list) else [found]) for way, found in answer.items()
    }


@pytest.mark.parametrize("way", ["view", "gather", "sync", "thread"])
def test_what_was_written_anywhere_is_read_everywhere(way: str, visitors: Visitors) -> None:
    """In tasks and threads of later requests; whoever has not written shows that replicas lag."""
    assert visitors.ann.post(f"/change/second/{way}/").text == "second"
    assert set().union(*titles(visitors.ann).values()) == {"second"}
    others = titles(visitors.bob)
    assert others.pop("bare thread") == {"second"}  # the primary answers it
    assert set().union(*others.values()) == {"first"}


def test_a_stream_reads_what_it_wrote_and_so_do_later_requests(visitors: Visitors) -> None:
    """Its token is stored with its end, before the client knows of that."""
    assert visitors.ann.get("/stream/second/").text == "first second"
    assert titles(visitors.ann)["gather"] == {"second"}
    assert titles(visitors.bob)["gather"] == {"first"}


def told(visitors: Visitors, path: str) -> list[str]:
    """Return what events tell Ann before and after a change of hers, and Bob after it."""
    found = []
    with visitors.ann.stream("GET", path) as hers, visitors.bob.stream("GET", path) as his:
        assert hers.headers["Content-Type"] == "text/event-stream"
        her_lines, his_lines = hers.iter_lines(), his.iter_lines()
        found.append(next(filter(None, her_lines)))
        next(filter(None, his_lines))
        with httpx.Client(base_url=visitors.ann.base_url, cookies=visitors.ann.cookies) as other:
            assert other.post("/change/second/view/").text == "second"
            other.post("/tell/")
        found.append(next(filter(None, her_lines)))
        found.append(next(filter(None, his_lines)))
    return found


def test_an_event_tells_what_its_user_wrote_elsewhere(visitors: Visitors) -> None:
    """By a scope of its own, as in the documents."""
    assert told(visitors, "/events/") == ["data: first", "data: second", "data: first"]


def test_events_in_one_scope_tell_what_was_known_at_the_begin(visitors: Visitors) -> None:
    """The control. And what a stream does when its client hangs up is done."""
    assert told(visitors, "/one_scope/") == ["data: first"] * 3
    wait_until(lambda: Tag.objects.using("default").count() == 2, "both streams to be closed")
