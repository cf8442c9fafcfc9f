"""What the footer of every page shows."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from testproject.metering import current_meter
from testproject.notes.forms import LagForm
from testproject.notes.replicas import replica_states


def routing(request: HttpRequest) -> dict[str, object]:
    """Return the meter of the request and, where the site is inspected, the state of the replicas.

    Both are read when the footer is rendered, so that the queries of the page itself are in.
    """
    context: dict[str, object] = {"meter": current_meter(), "routing": settings.ROUTING}
    if settings.INSPECT:
        context |= {"replica_states": replica_states, "lag_form": LagForm()}
    return context
