"""The ASGI application of a site that has WebSockets, too."""

from __future__ import annotations

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from tests.channels_site import sockets  # noqa: E402 - it needs the apps to be ready

application = ProtocolTypeRouter({"http": http, "websocket": sockets})
