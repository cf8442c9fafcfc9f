"""A Django project that runs on a primary and its replicas: the demonstration and the tests' app."""

from __future__ import annotations
