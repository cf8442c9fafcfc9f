"""Two services, each with a cluster of its own, which call each other and hand on what has to be seen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import pytest

from testproject.cluster import Cluster
from testproject.cluster.server import free_port
from testproject.notes.models import Tag
from tests.conftest import POOLER, ROOT, wait_until
from tests.examples import load_example
from tests.servers import Service, gunicorn, running, uvicorn
from tests.test_processes import environment

HEADER = "X-Replica-Token"


class Pair(NamedTuple):
    """A shop and the index that it calls, and that calls it."""

    shop: Service
    index: Service


class Services(NamedTuple):
    """The two services with and without what carries tokens, and the cluster of the index."""

    carrying: Pair
    without: Pair
    cluster: Cluster


def _start(stack: ExitStack, clusters: list[Cluster], folder: Any, **options: str) -> Pair:
    ports = free_port(), free_port()
    shared = {
        "TESTS_SHOP_URL": f"http://127.0.0.1:{ports[0]}",
        "TESTS_INDEX_URL": f"http://127.0.0.1:{ports[1]}",
        **options,
    }
    commands = (
        uvicorn("testproject.asgi:application", ports[0]),
        gunicorn("testproject.wsgi", ports[1]),
    )
    started = []
    for number, (name, command, port, cluster) in enumerate(
        zip(("shop", "index"), commands, ports, clusters, strict=True)
    ):
        variables = environment(cluster, settings="tests.peer_settings") | shared
        variables["TESTS_SECRET"] = f"the secret of the {name}"
        # Not the store of the tests, which each of them empties: this one serves from first to last.
        assert clusters[1].cache is not None
        variables["TESTPROJECT_CACHE_URL"] = f"{clusters[1].cache.url.removesuffix('/0')}/{number}"
        log = folder / f"{name}{port}.log"
        started.append(stack.enter_context(running(command, port, log, variables)))
    return Pair(*started)


@pytest.fixture(scope="module")
def _services(
    real_cluster: Cluster, _django_on_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with (
        Cluster(replicas=1, cache=True, databases=("app",), pooler=POOLER) as second,
        ExitStack() as stack,
    ):
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "-v0"],
            env=environment(second),
            cwd=ROOT,
            check=True,
        )
        clusters = [real_cluster, second]
        carrying = _start(stack, clusters, folder)
        without = _start(stack, clusters, folder, TESTS_WITHOUT="carriers")
        for service in (*carrying, *without):
            service.wait_until_it_answers("/names/")
        yield Services(carrying, without, second)


@pytest.fixture
def services(_services: Services, cluster: Cluster) -> Iterator[Services]:
    """Both services, with replicas that show what there was before, and nothing new."""
    for pair in (_services.carrying, _services.without):
        for service, path in ((pair.shop, "/names/"), (pair.index, "/found/")):
            wait_until(
                lambda service=service, path=path: (
                    "replica" in service.client.get(path).headers["X-Reads"]
                ),
                f"a replica to serve {path}",
            )
    replicas = (*cluster.replicas, *_services.cluster.replicas)
    for replica in replicas:
        replica.pause()
    yield _services
    for replica in replicas:
        replica.resume()
    _services.cluster.primary.execute("TRUNCATE notes_tag CASCADE", dbname="app")
    _services.cluster.wait_caught_up()


def add(pair: Pair) -> tuple[Any, dict[str, str]]:
    """Have the shop write, and the index after it; return what the index saw, and the header to go on with."""
    response = pair.shop.client.post("/add/red/")
    assert response.status_code == 200, (pair.shop.log.read_text(), pair.index.log.read_text())
    return response.json()["indexed"], {HEADER: response.headers[HEADER]}


def show(pair: Pair, headers: dict[str, str]) -> Any:
    """Return what a client with that header is shown of both services."""
    return pair.shop.client.get("/", headers=headers).json()


def test_each_service_sees_what_the_other_wrote_and_the_client_both(services: Services) -> None:
    """From the shop to the index, back to the shop's own interface, and with the answer to the client."""
    indexed, headers = add(services.carrying)
    assert indexed == ["red"]
    assert show(services.carrying, headers) == {"names": ["red"], "found": ["1 names"]}


def test_without_the_carriers_neither_does(services: Services) -> None:
    """The client's own header still binds the shop: that is all it can."""
    indexed, headers = add(services.without)
    assert indexed == []
    assert show(services.without, headers) == {"names": ["red"], "found": []}
    assert Tag.objects.using("default").count() == 1


def test_a_client_without_the_header_is_bound_by_nothing(services: Services) -> None:
    """What the services have told each other is no other client's."""
    add(services.carrying)
    assert show(services.carrying, {}) == {"names": [], "found": []}


def test_a_client_of_its_own_kind_sees_both(services: Services) -> None:
    """The documents' client, which keeps the header."""
    api = load_example("http.md", "app/client.py").Api(str(services.carrying.shop.client.base_url))
    with api.client:
        assert api.send("POST", "/add/red/").json() == {"indexed": ["red"]}
        assert api.send("GET", "/").json() == {"names": ["red"], "found": ["1 names"]}
        del api.client.headers[HEADER]
        assert api.send("GET", "/").json() == {"names": [], "found": []}


def test_a_browser_sees_both_where_its_session_keeps_the_token(services: Services) -> None:
    """And by its session alone, which the index does not know, not."""
    with httpx.Client(base_url=services.carrying.shop.client.base_url, timeout=30.0) as browser:
        assert browser.post("/pages/refresh/").status_code == 204
        assert browser.get("/pages/found/").json() == {"found": ["0 names"]}
        assert browser.get("/").json()["found"] == []
