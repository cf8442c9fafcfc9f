"""Installing the package breaks nobody's tests: Django's own test suite is the measure."""

from __future__ import annotations
