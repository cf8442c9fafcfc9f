"""The commands of ``manage.py``: what is typed comes in, what is known of servers goes out as text or JSON."""

from __future__ import annotations
