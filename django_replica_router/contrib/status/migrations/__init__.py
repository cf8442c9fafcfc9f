"""The model that has no table, so that no site makes a migration for it."""
