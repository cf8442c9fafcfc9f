"""What strangers, caches, servers and settings can send, by the million, against what must hold."""

from __future__ import annotations
