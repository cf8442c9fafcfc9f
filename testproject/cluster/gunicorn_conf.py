"""How gunicorn serves a site; the bind address and the workers come by command line."""

from __future__ import annotations

import os
import signal
import sys
from threading import Thread

worker_class = "gthread"
threads = 4
# Visitors leave no connection open, so that any worker may answer the next request.
keepalive = 2
timeout = 30
graceful_timeout = 3
# Newer versions open a control socket in the home directory, which the demonstration has no use for.
control_socket_disable = True


def when_ready(server: object) -> None:
    """End with the process that started this one: its death closes the pipe at the other end of stdin."""
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
