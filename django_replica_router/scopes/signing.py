"""The text of a token, signed: what leaves the process, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from django.conf import settings
from django.core import signing

from django_replica_router.conf import get_config
from django_replica_router.stats import count
from django_replica_router.values.carried import LONGEST, Carried

_SALT = "django_replica_router.token"


class Token(Carried):
    """What somebody must see, in every cluster that is concerned. ``str()`` gives the text that may be passed on.

    ``a | b`` binds at least as much as both; ``a >= b`` tells whether ``a`` covers ``b``. An empty one is false.
    """

    __slots__ = ()

    def __str__(self) -> str:
        """Return the text that may leave the process, signed; "" where there is nothing to see."""
        return _signer().sign(self.encode()) if self.entries else ""

    def __repr__(self) -> str:
        return f"<Token of {len(self.entries)} clusters>"

    @classmethod
    def read(cls, text: str | Carried | None) -> Self:
        """Return the token that a text stands for; an empty one where it is broken, forged or missing.

        What is refused is counted as ``tokens_refused``.
        """
        if isinstance(text, Carried):
            return cls(text.entries)
        if not text:
            return cls()
        try:
            if len(text) > LONGEST:
                raise ValueError(len(text))
            return cls.decode(_signer().unsign(text))
        except Exception:  # whatever a stranger can make of a text
            count("tokens_refused")
            return cls()


def _signer() -> signing.Signer:
    keys: Sequence[str | bytes] = get_config().TOKEN_KEYS
    first, *others = keys or (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return signing.Signer(key=first, fallback_keys=others, salt=_SALT)
