"""OpenTelemetry: spans of statements that tell which server was chosen, and why."""

from __future__ import annotations

from django_replica_router.contrib.extras import needs
from django_replica_router.contrib.telling import TellingMiddleware
from django_replica_router.observations import INSTEAD, running
from django_replica_router.observing import telling

with needs("opentelemetry.sdk", "opentelemetry"):
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor

ALIAS = "replica_router.alias"
REASON = "replica_router.reason"


class ReplicaSpanProcessor(SpanProcessor):
    """Puts on each span that begins while a statement runs which server that was meant for, and why.

    Those are the spans of the driver's instrumentation: ``replica_router.alias`` has the alias,
    ``replica_router.reason`` the reason's name. Add it to the tracer provider, in front of what exports.
    Statements of requests have reasons by ``ReplicaSpanMiddleware``, others in a ``telling`` block.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put on the span what is known of the statement that runs."""
        statement = running.get()
        if statement is not None:
            is_answered_instead = statement.alias != statement.asked
            reason = INSTEAD if is_answered_instead else statement.decided.reason
            span.set_attributes({ALIAS: statement.alias, REASON: reason})


class ReplicaSpanMiddleware(TellingMiddleware):
    """Has the reasons of a request's statements known to ``ReplicaSpanProcessor``. Belongs first in ``MIDDLEWARE``."""

    block = staticmethod(telling)
