"""Comments of statements that tell the server's log, and its views of activity, why each came there."""

from __future__ import annotations

from django_replica_router.contrib.telling import TellingMiddleware
from django_replica_router.observing import commenting


class SqlCommenterMiddleware(TellingMiddleware):
    """Sends the statements of requests with comments in the format of sqlcommenter.

    ``SELECT ... /*replica_reason='CAUGHT_UP',replica_server='replica1'*/``. Belongs first in ``MIDDLEWARE``.
    """

    block = staticmethod(commenting)
