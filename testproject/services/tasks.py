"""What the worker does. Nothing in it names the package."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from testproject.metering import metering
from testproject.orders.commands import Ship
from testproject.orders.queries import describe


@shared_task  # type: ignore[untyped-decorator]  # Celery tells no types
def ship(pk: int) -> dict[str, Any]:
    """Ship an order that is packed. Return the order as the worker has found it, and which servers were read."""
    with metering() as meter:
        found = describe(pk)
        if found is not None:
            Ship().handle(pk)
    return {"order": found, "reads": meter.described_reads()}
