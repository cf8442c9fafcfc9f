"""Django's PostgreSQL backend, whose COMMIT brings the token along."""
