"""RQ: a class of jobs that carry a token, for ``Queue(job_class=...)`` and ``rq worker --job-class``."""

from __future__ import annotations

from typing import Any

from django_replica_router.contrib.background import (
    Run,
    remember_result,
    see_result,
    token_to_publish,
)
from django_replica_router.contrib.extras import needs
from django_replica_router.scopes.signing import Token

with needs("rq"):
    from rq.job import Job as BaseJob
    from rq.job import JobStatus

_TOKEN = "replica_router"  # noqa: S105 - the name of it
_ENDED = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)


class Job(BaseJob):
    """A job that sees what whoever has enqueued it has written. Who asks for its result sees what it has written."""

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save it, as it is enqueued: now, or when what it depends upon has ended, or for another try."""
        token = token_to_publish(str(self.func_name))
        self.meta[_TOKEN] = str(Token.read(self.meta.get(_TOKEN)) | token)
        super().save(*args, **kwargs)

    def perform(self) -> Any:
        """Run it in a scope of its own."""
        run = Run(self.meta.get(_TOKEN), self.func)
        try:
            return super().perform()
        finally:  # before its result is stored
            remember_result([self._result_name])
            run.close()

    def get_status(self, refresh: bool = True) -> JobStatus:
        """Return its status. Where it has ended, see what it has written."""
        status = super().get_status(refresh)
        if status in _ENDED:
            see_result(self._result_name)
        return status

    def latest_result(self, timeout: int = 0) -> Any:
        """Return its latest result, and see what it has written."""
        result = super().latest_result(timeout)
        if result is not None:
            see_result(self._result_name)
        return result

    @property
    def _result_name(self) -> str:
        return f"rq:{self.id}"
