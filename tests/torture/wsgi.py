"""The WSGI application, with the sabotage that the environment asks for."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from django_replica_router.routing.budget import monotonic_budget
from tests.torture.sabotage import SABOTAGES
from tests.torture.stalls import heartbeat

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.torture.settings")

application = get_wsgi_application()

# So few requests as a process has here would hardly ever need more than what is free.
monotonic_budget._free = 0

heartbeat.start()

# After the apps are loaded, before the first request: only then is all that may be patched there.
_name = os.environ.get("TORTURE_CONTROL", "")
if _name:
    SABOTAGES[_name]()
