"""Settings of worker processes that serve pages of the tests' own."""

from __future__ import annotations

from tests.patient_settings import *  # noqa: F403 - that is what it is for

ROOT_URLCONF = "tests.worker_site"
