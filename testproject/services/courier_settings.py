"""Settings of the courier's service: it knows nobody of the shop's users, and has a key of its own."""

from __future__ import annotations

from testproject.services.settings import *  # noqa: F403 - that is what it is for

ROOT_URLCONF = "testproject.services.courier_urls"
SECRET_KEY = "the courier's, for the demonstration, which listens on loopback"
