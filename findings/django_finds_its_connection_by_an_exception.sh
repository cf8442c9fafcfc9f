#!/usr/bin/env bash
# Django 5.2.19 with asgiref 3.13.0: connections["default"], where no event loop runs, as in every WSGI worker, raises a RuntimeError
# inside and catches it, each time, also where the connection has been there for long. One read by the ORM does so three times, and a
# request that reads nothing twenty times on a site of two databases. Nobody sees them but who watches exceptions as they are
# raised: a debugger that stops at each, or sys.settrace.
# Why: the handler keeps its connections in asgiref's Local(thread_critical=True). That asks for each attribute whether an event loop
# runs, by asyncio.get_running_loop(), which says "no" by an exception.
# Seen with Python 3.11 and 3.13:
#   a look-up: 1
#   a read: 3
#   a request: 20
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 asgiref==3.13.0

cat > "$folder/look.py" <<'PY'
import sys

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, models
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": memory, "other": memory}, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
django.setup()
urlpatterns = [path("", lambda request: HttpResponse("hello"))]


class Note(models.Model):
    class Meta:
        app_label = "notes"


def count(do):
    """Return how many RuntimeErrors are raised meanwhile, each counted where it is raised."""
    raised = []

    def trace(frame, event, argument):
        if event == "exception" and argument[0] is RuntimeError and argument[2].tb_next is None:
            raised.append(argument[1])
        return trace

    do()  # what happens once only is none of it
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(None)
    return len(raised)


def serve():
    response = WSGIHandler()(RequestFactory().get("/").environ, lambda *args: None)
    assert b"".join(response) == b"hello"
    response.close()


with connection.schema_editor() as editor:
    editor.create_model(Note)
list(connections["other"].cursor().execute("SELECT 1"))
print("a look-up:", count(lambda: connections["default"]))
print("a read:", count(lambda: list(Note.objects.filter(pk=1))))
print("a request:", count(serve))
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
a look-up: 1
a read: 3
a request: 20
TXT
