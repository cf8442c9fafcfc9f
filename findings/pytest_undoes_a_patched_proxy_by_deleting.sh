#!/usr/bin/env bash
# pytest 9.2.0: where monkeypatch.setattr changes an attribute of Django's django.db.connection, what was there is gone after the test: the
# next one that reads connection.autocommit meets an AttributeError. pytest 9.1.0 puts it back. So it is with each object
# that hands its attributes on to another one, as asgiref's Local.
# Why: since 9.2 an attribute that does not stand in the object's own __dict__ is taken for an inherited one, and taken back by deleting
# what the patch has set. A proxy has set it on the object behind it, and deletes it there.
# Seen with Python 3.11, Django 5.2.19, asgiref 3.13.0:
#   pytest 9.1.0, connection.autocommit: as before
#   pytest 9.1.0, Local: as before
#   pytest 9.2.0, connection.autocommit: gone
#   pytest 9.2.0, Local: gone
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

cat > "$folder/look.py" <<'PY'
import pytest
from asgiref.local import Local
from django.conf import settings
from django.db import connection

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
local = Local()
local.autocommit = False
connection.ensure_connection()
for name, target in (("connection.autocommit", connection), ("Local", local)):
    before = target.autocommit
    patch = pytest.MonkeyPatch()
    patch.setattr(target, "autocommit", "patched")
    patch.undo()
    after = getattr(target, "autocommit", "gone")
    print(f"pytest {pytest.__version__}, {name}: {'as before' if after is before else after}")
PY
seen=$(for version in 9.1.0 9.2.0; do
  "$folder/venv/bin/pip" install -q "pytest==$version" django==5.2.19 asgiref==3.13.0
  "$folder/venv/bin/python" "$folder/look.py"
done)
printf '%s\n' "$seen"
diff - <(printf '%s\n' "$seen") <<'TXT'
pytest 9.1.0, connection.autocommit: as before
pytest 9.1.0, Local: as before
pytest 9.2.0, connection.autocommit: gone
pytest 9.2.0, Local: gone
TXT
