"""What tells of orders: read from replicas, and unable to write."""

from __future__ import annotations

from typing import Any

from django.db.models import F, Sum

from django_replica_router import query, see
from testproject.orders.models import Order


@query
def describe(pk: int) -> dict[str, Any] | None:
    """Return an order with its lines, or None."""
    order = Order.objects.filter(pk=pk).first()
    if order is None:
        return None
    lines = dict(order.lines.values_list("product", "quantity"))
    return {"id": order.pk, "state": order.state, "lines": lines}


@query
def describe_to_anybody(pk: int) -> dict[str, Any] | None:
    """Return the same, with all that whoever worked on the order has written."""
    see(key=f"order:{pk}")
    return describe(pk)


@query(max_lag=60.0)
class Demand:
    """How many of each product are ordered: a report, which may be a minute old."""

    def handle(self) -> dict[str, int]:
        """Return the quantities by product."""
        sums = Order.objects.values_list("lines__product").annotate(Sum("lines__quantity"))
        return dict(sums.order_by("lines__product"))


@query
def describe_and_count(pk: int) -> dict[str, Any] | None:
    """Return an order, and count the look: a mistake, which is refused."""
    Order.objects.filter(pk=pk).update(looks=F("looks") + 1)
    return describe(pk)
