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
        order = Order.objects.select_for_update().filter(pk=pk, state="placed").first()
        if order is None:
            return False
        order.state = "packed"
        order.save(update_fields=["state"])
        track(f"order:{pk}")
        return True
