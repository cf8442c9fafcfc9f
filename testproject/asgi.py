"""The ASGI application."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")

# The demonstration has no web server in front: the style sheets come from here.
application = ASGIStaticFilesHandler(get_asgi_application())
