"""The WSGI application."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")

# The demonstration has no web server in front: the style sheets come from here.
application = StaticFilesHandler(get_wsgi_application())
