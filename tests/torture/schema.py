"""The tables and the function of the tortured site, which need no migration."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS torture_register (id bigint PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE IF NOT EXISTS torture_visit (id bigint PRIMARY KEY, hits bigint NOT NULL);
CREATE TABLE IF NOT EXISTS torture_scratch (id bigint PRIMARY KEY, filler text NOT NULL);
CREATE OR REPLACE FUNCTION torture_raise(register bigint) RETURNS bigint LANGUAGE sql
    AS 'UPDATE torture_register SET value = value + 1 WHERE id = register RETURNING value';
"""
FILL_SCRATCH = (
    "INSERT INTO torture_scratch SELECT n, repeat('x', 100) FROM generate_series(1, 100) n"
)
