"""WebSockets: the consumer of the documents' example, and what it is compared with."""

from __future__ import annotations

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import URLRouter
from django.contrib.auth.models import User
from django.urls import path

from django_replica_router.contrib.channels import ScopePerMessage
from testproject.notes.models import Note
from tests.examples import load_example

Notes = load_example("http.md", "live/consumers.py").Notes


class Plain(Notes):  # type: ignore[misc, valid-type]
    """The same without a scope."""

    dispatch = AsyncJsonWebsocketConsumer.dispatch


class Untold(Notes):  # type: ignore[misc, valid-type]
    """The same without the token of who has sent a message."""

    async def dispatch(self, message: Any) -> None:
        """Handle a message."""
        message.pop("replica_token", None)
        await super().dispatch(message)


class Sync(ScopePerMessage, JsonWebsocketConsumer):
    """A synchronous consumer."""

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Change the title, or tell it."""
        if "title" in content:
            Note.objects.update(title=content["title"])
        self.send_json({"title": Note.objects.latest("pk").title})


class Visitor(ScopePerMessage, AsyncJsonWebsocketConsumer):
    """Lets its visitor sign in by a message."""

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Write for somebody, who signs in by that."""
        await Note.objects.aupdate(title="second")
        self.scope["user"] = await User.objects.aget(username=content["name"])
        await self.send_json({})


class Saving(ScopePerMessage, AsyncJsonWebsocketConsumer):
    """Saves what it has read."""

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Save it, and tell where it was read."""
        note = await Note.objects.alatest("pk")
        origin = note._state.db
        await note.asave()
        await self.send_json({"origin": origin})


CONSUMERS = {
    "notes": Notes,
    "plain": Plain,
    "untold": Untold,
    "sync": Sync,
    "visitor": Visitor,
    "saving": Saving,
}
sockets = AuthMiddlewareStack(
    URLRouter([path(f"{name}/", consumer.as_asgi()) for name, consumer in CONSUMERS.items()])
)
