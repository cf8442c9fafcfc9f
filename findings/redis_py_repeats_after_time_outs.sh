#!/usr/bin/env bash
# redis-py 8.1.0: whether socket_timeout bounds a command depends on how the client was made. Where a server accepts
# connections and does not answer, redis.Redis(socket_timeout=0.3) tries 11 times, each for that long, with pauses between: 5 to
# 8 s. With retry_on_timeout=False, which is deprecated, as well. A client with a pool of its own, as Django's RedisCache
# makes it, tries once. So a time-out that was tried out with the one says nothing of the other. A
# retry=Retry(..., supported_errors=(ConnectionError,)) tries once with both.
# Why: since version 6 Redis() has a Retry where none is given, and TimeoutError is among the errors that Retry takes for
# temporary unless it is told otherwise; connections of a pool have no Retry by default.
# Seen with Python 3.11 and 3.13, Django 5.2.19:
#   redis.Redis, socket_timeout=0.3: 11 attempts
#   redis.Redis, socket_timeout=0.3, retry_on_timeout=False: 11 attempts
#   redis.Redis, socket_timeout=0.3, retry for ConnectionError: 1 attempts
#   redis.Redis over ConnectionPool, socket_timeout=0.3: 1 attempts
#   Django's RedisCache, socket_timeout=0.3: 1 attempts
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 redis==8.1.0

cat > "$folder/look.py" <<'PY'
import contextlib
import socket
import threading
import warnings

import django
import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

warnings.simplefilter("ignore")
silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
port = silent.getsockname()[1]
accepted = []


def accept():
    with contextlib.suppress(OSError):
        while True:
            accepted.append(silent.accept()[0])


threading.Thread(target=accept, daemon=True).start()


def look(name, get):
    accepted.clear()
    try:
        get("a")
        raise AssertionError("nobody can have answered")
    except redis.TimeoutError:
        print(f"{name}: {len(accepted)} attempts")


def client(**options):
    return redis.Redis(port=port, socket_timeout=0.3, protocol=2, **options)


settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://127.0.0.1:{port}/0?protocol=2",
            "OPTIONS": {"socket_timeout": 0.3},
        }
    }
)
django.setup()
from django.core.cache import cache

look("redis.Redis, socket_timeout=0.3", client().get)
look("redis.Redis, socket_timeout=0.3, retry_on_timeout=False", client(retry_on_timeout=False).get)
broken = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
look("redis.Redis, socket_timeout=0.3, retry for ConnectionError", client(retry=broken).get)
pool = redis.ConnectionPool(port=port, socket_timeout=0.3, protocol=2)
look("redis.Redis over ConnectionPool, socket_timeout=0.3", redis.Redis(connection_pool=pool).get)
look("Django's RedisCache, socket_timeout=0.3", cache.get)
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
redis.Redis, socket_timeout=0.3: 11 attempts
redis.Redis, socket_timeout=0.3, retry_on_timeout=False: 11 attempts
redis.Redis, socket_timeout=0.3, retry for ConnectionError: 1 attempts
redis.Redis over ConnectionPool, socket_timeout=0.3: 1 attempts
Django's RedisCache, socket_timeout=0.3: 1 attempts
TXT
