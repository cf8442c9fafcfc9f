"""Orders by CQRS: commands to the primary, queries to the replicas, over HTTP."""
