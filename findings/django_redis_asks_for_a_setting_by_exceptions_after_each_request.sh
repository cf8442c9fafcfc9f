#!/usr/bin/env bash
# django-redis 7.0.0 with Django 5.2.19: a thread that has once used caches["default"] pays for it at the end of each later
# request, also of one that never touches the cache. Django calls RedisCache.close() by its signal request_finished, and that asks
# the settings for DJANGO_REDIS_CLOSE_CONNECTION each time; where the site has not set it, and nobody needs to, the answer is an
# AttributeError that is raised inside and swallowed: Django's lazy settings keep what they have found, but not what is missing.
# Setting it to False, its default, takes that away. Django's own Redis backend has no close().
# Seen with Python 3.11 and 3.13, the frames through which such an error passes in a request that reads nothing:
#   cache never used: none
#   used once: __getattribute__, __getattr__
#   used once, the setting set: none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 django-redis==7.0.0

cat > "$folder/site_settings.py" <<'PY'
redis = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:6379/0"}
CACHES, ROOT_URLCONF, ALLOWED_HOSTS, SECRET_KEY = {"default": redis}, "site_urls", ["*"], "secret"
PY
cat > "$folder/site_urls.py" <<'PY'
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse("hello"))]
PY
cat > "$folder/look.py" <<'PY'
import os
import sys

import django
from django.conf import settings
from django.core.cache import caches
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory

os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
django.setup()
handler = WSGIHandler()


def serve():
    response = handler(RequestFactory().get("/").environ, lambda *args: None)
    assert b"".join(response) == b"hello"
    response.close()


def raised():
    """Return the names of the functions that an error about the setting passes through in one request."""
    names = []

    def trace(frame, event, argument):
        if event == "exception" and argument[0] is AttributeError and "DJANGO_REDIS" in str(argument[1]):
            names.append(frame.f_code.co_name)
        return trace

    serve()
    sys.settrace(trace)
    try:
        serve()
    finally:
        sys.settrace(None)
    return ", ".join(names) or "none"


print("cache never used:", raised())
caches["default"].client  # as each use of the cache begins; it connects to nothing
print("used once:", raised())
settings.DJANGO_REDIS_CLOSE_CONNECTION = False
print("used once, the setting set:", raised())
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
cache never used: none
used once: __getattribute__, __getattr__
used once, the setting set: none
TXT
