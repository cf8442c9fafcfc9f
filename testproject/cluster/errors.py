"""The exceptions of the cluster library."""

from __future__ import annotations


class ClusterError(Exception):
    """A server is missing, does not start, or does not reach a state in time."""


class ProgramError(ClusterError):
    """A program cannot be started, fails, does not answer, or has ended."""
