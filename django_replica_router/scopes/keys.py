"""The names under which the token store keeps what it knows of whom."""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from functools import cache, lru_cache

from django_replica_router.conf import site_settings

EVERYBODY = "everybody"
"""Stands for the record that is a floor for every reader.

It holds the position at which the store began to remember, so that a reader whom the store does
not know has written nothing since; and the position of the last migration. Where it is missing,
the store has been emptied, and nobody's silence means anything.
"""


_FOR_URLS = bytes.maketrans(b"+/", b"-_")


@cache
def _hash_key(secret: str | bytes) -> bytes:
    raw = secret if isinstance(secret, bytes) else secret.encode()
    return hashlib.sha256(b"django_replica_router" + raw).digest()


def digest(kind: str, value: str) -> str:
    """Return the key that stands for a session, credential or user in the token store.

    It is a keyed hash, so that a reader of the cache learns neither a session key nor a password
    from it, and nobody without ``SECRET_KEY`` can name a key.

    It has 96 bits, in 16 characters that fit into a URL. Among a billion keys two are equal with a
    chance of less than 1 in 10**11, and nobody can search for such a pair who cannot compute keys.
    Two users of one key would share the higher of their tokens, which is never too low.
    """
    return _hash(f"{kind}:{value}", site_settings().SECRET_KEY)


def remembered_digest(kind: str, value: str) -> str:
    """Return the same, for what is no secret itself and is asked for several times a request."""
    return _remembered_hash(f"{kind}:{value}", site_settings().SECRET_KEY)


def _hash(text: str, secret: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass")
    hashed = hashlib.blake2b(data, digest_size=12, key=_hash_key(secret))
    return b2a_base64(hashed.digest(), newline=False).translate(_FOR_URLS).decode()


_remembered_hash = lru_cache(maxsize=4096)(_hash)


def store_key(primary: str, name: str, life: str = "") -> str:
    """Return the key under which the store keeps a record of one cluster.

    Args:
        primary: alias of the primary.
        name: a digest, or ``EVERYBODY``.
        life: of the store, for ``EVERYBODY``.
    """
    return f"rr:{primary}:{stored_name(name, life)}"


def stored_name(name: str, life: str = "") -> str:
    """Return what stands for a name in the store: a digest for itself.

    The record for everybody is found only under the ``SECRET_KEY`` under which it was stored: where
    that was changed, no digest is what it was, and the store knows nobody any more. And only in the
    life of the store in which it was stored: in the next one, tokens may be missing.

    Args:
        name: a digest, or ``EVERYBODY``.
        life: of the store, for ``EVERYBODY``.
    """
    if name != EVERYBODY:
        return name
    return f"{EVERYBODY}-{remembered_digest(EVERYBODY, life)}"
