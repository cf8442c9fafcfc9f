"""The examples of the documents, run as they stand there, on replicas that lag."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client

from django_replica_router import get_stats, query, scope
from django_replica_router.errors import TooStale, WriteInQuery
from testproject.cluster import Cluster
from testproject.orders.models import Line, Order
from tests.conftest import wait_until_known
from tests.helpers import Served
from tests.site import PASSWORD, sign_in, visit

DOCS = Path(__file__).resolve().parent.parent / "docs"

Names = dict[str, Any]


def example(document: str, *needs: str, **names: Any) -> Names:
    """Run the one example of a document that defines all these names; return what it has defined."""
    text = (DOCS / document).read_text()
    blocks = [
        block.replace("\n    ", "\n").lstrip("\n")
        for block in re.findall(r"(?:\n(?:    .*)?)+", text)
        if "import" in block
    ]
    (code,) = [block for block in blocks if all(need in block for need in needs)]
    site = {"Order": Order, "Line": Line, "Sum": Sum, "JsonResponse": JsonResponse}
    found: Names = {"HttpResponse": HttpResponse, **site, **names}
    exec(compile(code, document, "exec"), found)  # noqa: S102 - it is the document's own
    return found


class Queue:
    """Keeps what is sent, as a broker does."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []

    def send(self, pk: int, *, token: str) -> None:
        """Take a message."""
        self.sent.append((pk, token))


@pytest.fixture
def bob(cluster: Cluster) -> User:
    """Another user."""
    return User.objects.create_user("bob", password=PASSWORD)


@pytest.fixture
def apart(ann: User, bob: User, test_site: None, cluster: Cluster) -> tuple[Client, Client]:
    """Two users who have signed in on every server, of which replicas have replayed nothing since."""
    clients = sign_in(ann), sign_in(bob)
    wait_until_known(cluster)
    for client in clients:
        visit(client, lambda request: request.user.get_username())
    for replica in cluster.replicas:
        replica.pause()
    return clients


def test_the_example_of_commands_and_queries(
    apart: tuple[Client, Client], cluster: Cluster, served: Served
) -> None:
    """Who has placed sees; somebody else does by the key, or when replicas are there."""
    mine, yours = apart
    site = example("cqrs.md", "def place(", "def place_view")
    answer = _ask(mine, site["place_view"], "post")
    pk = answer["id"]

    def order(client: Client) -> Any:
        return _ask(client, lambda request: site["order_view"](request, pk))

    expected = {"state": "placed", "lines": {"apples": 3}}
    assert order(mine) == expected
    with pytest.raises(Order.DoesNotExist):
        order(yours)
    assert _ask(yours, lambda request: site["packers_view"](request, pk)) == expected
    with scope(token=answer["token"]):
        assert site["describe"](pk) == expected
        assert site["Demand"]().handle() == {"apples": 3}
    served.clear()
    with scope():
        assert site["Demand"]().handle() == {}
    assert served.only_replicas("orders_order")
    with pytest.raises(WriteInQuery):
        site["query"](site["place"])(User.objects.get(username="ann"), {})


def test_the_message_in_the_document_is_the_one_that_is_raised(cluster: Cluster) -> None:
    """But for the name of the site."""
    (line,) = re.findall(r"^    (The query .*)$", (DOCS / "cqrs.md").read_text(), re.MULTILINE)

    def describe() -> None:
        Order.objects.update(state="lost")

    describe.__module__, describe.__qualname__ = "shop.queries", "describe"
    with pytest.raises(WriteInQuery) as caught:
        query(describe)()
    told = (
        str(caught.value)
        .replace("orders_order", "shop_order")
        .replace("orders.Order", "shop.Order")
    )
    assert told == line


def test_the_example_of_tokens(apart: tuple[Client, Client], cluster: Cluster) -> None:
    """A worker with the token finds the order, and gives one back; without it the order is not there."""
    mine, _ = apart
    queue = Queue()
    site = example("tokens.md", "def place(", queue=queue)
    _ask(mine, site["place"], "post")
    ((pk, token),) = queue.sent
    with pytest.raises(Order.DoesNotExist):
        site["worker"](pk, None)
    after = site["worker"](pk, token)
    with scope(token=token):
        assert Order.objects.get().state == "packed"
    with scope(token=after):
        assert Order.objects.get().state == "packed"
    assert not get_stats().get("tokens_refused")


def test_the_example_of_keys(apart: tuple[Client, Client], ann: User, cluster: Cluster) -> None:
    """Somebody else is shown what was packed; the key of another order tells nothing."""
    mine, yours = apart
    for replica in cluster.replicas:
        replica.resume()
    pk = Order.objects.create(customer=ann).pk
    wait_until_known(cluster)
    for replica in cluster.replicas:
        replica.pause()
    site = example("tokens.md", "def pack(")

    def show(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"result": site["show"](request, pk).content.decode()})

    visit(mine, lambda request: site["pack"](request, pk), "post")
    assert visit(yours, lambda request: Order.objects.get(pk=pk).state) == "placed"
    assert visit(yours, show) == "packed"


def test_the_example_of_waiting_for_replicas(ann: User, cluster: Cluster) -> None:
    """It goes on while replicas replay."""
    order = Order.objects.create(customer=ann)
    line = Line.objects.create(order=order, product="apples", quantity=1)
    line.quantity = 2
    example("tokens.md", "for batch in batches", batches=[[line], [line]])
    assert Line.objects.get().quantity == 2


def test_the_example_of_a_report(lagging: Cluster) -> None:
    """It waits for a replica: not for the primary."""
    site = example("tokens.md", "def monthly_report")
    with scope():
        assert site["monthly_report"]() == 0
    with pytest.raises(TooStale), scope():
        site["use_replica"](max_lag=0.0, on_stale="raise")(Order.objects.count)()


def _ask(client: Client, view: Any, method: str = "get") -> Any:
    """Return what a view answers as JSON."""

    def run(request: HttpRequest) -> JsonResponse:
        response = view(request)
        if not isinstance(response, HttpResponse):
            return JsonResponse({"result": None})
        return JsonResponse({"result": json.loads(response.content)})

    return visit(client, run, method)
