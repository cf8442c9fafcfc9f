"""Serves the window from this process, whose servers it moves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import django
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from testproject.cluster.errors import ProgramError
from testproject.cluster.server import LOOPBACK, free_port


@contextmanager
def window_server(port: int) -> Iterator[str]:
    """Serve the window on a port of loopback, a free one if it is 0, and give its address.

    Django's own server: the window is for who sits at this machine, and a thread for each request
    is what streams and slow actions need.
    """
    os.environ["DJANGO_SETTINGS_MODULE"] = "testproject.window.settings"
    django.setup()
    port = port or free_port()
    try:
        server = ThreadedWSGIServer((LOOPBACK, port), WSGIRequestHandler)
    except (OSError, OverflowError) as error:
        raise ProgramError(f"Port {port} of {LOOPBACK} could not be opened: {error}") from error
    server.set_app(StaticFilesHandler(WSGIHandler()))
    thread = Thread(target=server.serve_forever, name="window", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
