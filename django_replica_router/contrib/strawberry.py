"""GraphQL by Strawberry: one URL and one method for queries, which read, and for mutations, which write."""

from __future__ import annotations

from collections.abc import Iterator

from django_replica_router.contrib.extras import needs
from django_replica_router.decorators import use_replica

with needs("strawberry"):
    from strawberry.extensions import SchemaExtension
    from strawberry.types.graphql import OperationType


class QueriesFromReplicas(SchemaExtension):
    """Reads queries from replicas, as ``use_replica`` does, whatever method they come by. Mutations stay on the primary.

    schema = strawberry.Schema(Query, Mutation, extensions=[QueriesFromReplicas])
    """

    def on_execute(self) -> Iterator[None]:
        """Execute an operation."""
        if self.execution_context.operation_type is OperationType.QUERY:
            with use_replica():
                yield
        else:
            yield
