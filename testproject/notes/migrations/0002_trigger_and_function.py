"""A trigger that fills the audit table, and a function that writes when it is selected."""

from __future__ import annotations

from django.db import migrations

TRIGGER = """
CREATE FUNCTION notes_record_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed notes_note := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    INSERT INTO notes_event (note_id, action, version)
    VALUES (changed.id, lower(TG_OP), changed.version);
    RETURN NULL;
END
$$;
CREATE TRIGGER notes_record_event AFTER INSERT OR UPDATE OR DELETE ON notes_note
    FOR EACH ROW EXECUTE FUNCTION notes_record_event();
"""
DROP_TRIGGER = """
DROP TRIGGER notes_record_event ON notes_note;
DROP FUNCTION notes_record_event();
"""

TOUCH = """
CREATE FUNCTION notes_touch(touched bigint) RETURNS integer LANGUAGE sql AS $$
    UPDATE notes_note SET version = version + 1, updated = now() WHERE id = touched
    RETURNING version
$$;
"""
DROP_TOUCH = "DROP FUNCTION notes_touch(bigint);"


# ruff: noqa: RUF012 - Django writes migrations with lists.


class Migration(migrations.Migration):
    dependencies = [("notes", "0001_initial")]

    operations = [
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
        migrations.RunSQL(TOUCH, DROP_TOUCH),
    ]
