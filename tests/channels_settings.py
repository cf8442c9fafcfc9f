"""Settings of a server of WebSockets."""

from __future__ import annotations

from tests.asgi_settings import *  # noqa: F403 - that is what it is for

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
