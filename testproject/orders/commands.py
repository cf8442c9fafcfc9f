"""What changes orders: each a transaction on the primary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_replica_router import command, track
from testproject.orders.models import Line, Order


@command(atomic=True)
def place(customer: Any, quantities: Mapping[str, int]) -> int:
    """Place an order, and return its number."""
    order = Order.objects.create(customer_id=customer.pk)
    Line.objects.bulk_create(
        Line(order=order, product=product, quantity=quantity)
        for product, quantity in quantities.items()
    )
    track(f"order:{order.pk}")
    return order.pk


@command(atomic=True)
class Pack:
    """Pack an order, once."""

    def handle(self, pk: int) -> bool:
        """Return whether it was there to be packed."""
        return _advance(pk, "placed", "packed")


@command(atomic=True)
class Ship:
    """Ship an order that is packed."""

    def handle(self, pk: int) -> bool:
        """Return whether it was there to be shipped."""
        return _advance(pk, "packed", "shipped")


@command(atomic=True)
class Deliver:
    """Deliver an order that was shipped."""

    def handle(self, pk: int) -> bool:
        """Return whether it was there to be delivered."""
        return _advance(pk, "shipped", "delivered")


def _advance(pk: int, before: str, after: str) -> bool:
    order = Order.objects.select_for_update().filter(pk=pk, state=before).first()
    if order is None:
        return False
    order.state = after
    order.save(update_fields=["state"])
    track(f"order:{pk}")
    return True
