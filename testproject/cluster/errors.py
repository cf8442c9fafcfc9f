"""The one exception of the cluster library."""

from __future__ import annotations


class ClusterError(Exception):
    """A server is missing, does not start, or does not reach a state in time."""
