"""What gunicorn does for the metrics of its workers, as the documents have it."""

from __future__ import annotations

from typing import Any

from prometheus_client.multiprocess import mark_process_dead


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended."""
    mark_process_dead(worker.pid)
