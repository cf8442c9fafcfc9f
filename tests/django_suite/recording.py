"""A test runner that keeps what became of each test, whatever process it ran in."""

from __future__ import annotations

import traceback
import unittest
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from django.test.runner import (
    DiscoverRunner,
    ParallelTestSuite,
    RemoteTestResult,
    RemoteTestRunner,
)

from tests.django_suite import outcomes, scoping
from tests.django_suite.modes import Mode
from tests.django_suite.outcomes import Outcome, Run

ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
)


def _text(err: ExcInfo) -> str:
    return "".join(traceback.format_exception(err[1]))


class RecordingResult(unittest.TextTestResult):
    """Keep an outcome of every test, subtest and class set-up by its id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, Outcome] = {}
        self.reads: Counter[str] = Counter()

    def _record(self, test: Any, kind: str, detail: str = "") -> None:
        test_id = outcomes.normalise(test.id())
        before = self.outcomes.get(test_id)
        # A test that failed and whose clean-up then skips or passes has failed all the same.
        if before is None or before.kind not in outcomes.BAD or kind in outcomes.BAD:
            self.outcomes[test_id] = Outcome(kind, isinstance(test, unittest.TestCase), detail)

    def startTest(self, test: Any) -> None:
        """Count on a pass: a test whose subtests were skipped reports nothing at all."""
        super().startTest(test)
        self._record(test, outcomes.PASSED)

    def stopTest(self, test: Any) -> None:
        """Add up the reads of a test of this process."""
        super().stopTest(test)
        self.addReads(test, scoping.reads_of(test))

    def addReads(self, test: Any, reads: Mapping[str, int]) -> None:
        """Add up the reads of a test, of whatever process."""
        self.reads.update(reads)

    def addError(self, test: Any, err: Any) -> None:
        """Record an error, also of the set-up of a class or module."""
        super().addError(test, err)
        self._record(test, outcomes.ERROR, _text(err))

    def addFailure(self, test: Any, err: Any) -> None:
        """Record a failure."""
        super().addFailure(test, err)
        self._record(test, outcomes.FAILED, _text(err))

    def addSkip(self, test: Any, reason: str) -> None:
        """Record a skip."""
        super().addSkip(test, reason)
        self._record(test, outcomes.SKIPPED, reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        """Record a failure that the suite expects."""
        super().addExpectedFailure(test, err)
        self._record(test, outcomes.EXPECTED_FAILURE)

    def addUnexpectedSuccess(self, test: Any) -> None:
        """Record a pass where the suite expects a failure."""
        super().addUnexpectedSuccess(test)
        self._record(test, outcomes.UNEXPECTED_SUCCESS)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        """Record a failed subtest under its own id and its test's."""
        super().addSubTest(test, subtest, err)
        if err is None:
            return
        kind = outcomes.FAILED if issubclass(err[0], test.failureException) else outcomes.ERROR
        self.outcomes[outcomes.normalise(subtest.id())] = Outcome(kind, False, _text(err))
        self._record(test, kind, _text(err))


class RemoteError(Exception):
    """Stands for an exception of another process, which may not survive being sent."""


class RemoteSubTest:
    """Stands for a subtest of another process: its parameters may not survive being sent."""

    failureException = AssertionError

    def __init__(self, test_id: str, description: str) -> None:
        self._id = test_id
        self._description = description

    def id(self) -> str:
        """Return the id of the subtest."""
        return self._id

    def shortDescription(self) -> None:
        """Return nothing: the description has it all."""

    def __str__(self) -> str:
        return self._description


def _flat(err: Any, failure: type[BaseException] | tuple[()]) -> Any:
    kind = AssertionError if issubclass(err[0], failure) else RemoteError
    return kind, kind(_text(err)), None


class RecordingRemoteResult(RemoteTestResult):
    """Send texts in the place of exceptions.

    Django pickles the exceptions themselves and ends the whole run where one cannot be.
    """

    def stopTest(self, test: Any) -> None:
        """Send the reads of the test along: the parent's copy of it has not run."""
        super().stopTest(test)
        self.events.append(("addReads", self.test_index, scoping.reads_of(test)))

    def addError(self, test: Any, err: Any) -> None:
        """Send the text of an error."""
        super().addError(test, _flat(err, ()))

    def addFailure(self, test: Any, err: Any) -> None:
        """Send the text of a failure."""
        super().addFailure(test, _flat(err, BaseException))

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        """Send the text of an expected failure."""
        super().addExpectedFailure(test, _flat(err, BaseException))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        """Send the text of a failed subtest."""
        if err is not None:
            subtest = RemoteSubTest(subtest.id(), str(subtest))
            err = _flat(err, test.failureException)
        super().addSubTest(test, subtest, err)


class RecordingRemoteRunner(RemoteTestRunner):
    """Run tests in a worker process."""

    resultclass = RecordingRemoteResult


class RecordingParallelSuite(ParallelTestSuite):
    """Run tests in several processes."""

    runner_class = RecordingRemoteRunner


class RecordingRunner(DiscoverRunner):
    """Django's runner, which leaves what it found in ``recorded``."""

    parallel_test_suite = RecordingParallelSuite
    recorded: ClassVar[Run | None] = None
    mode: ClassVar[Mode]

    def get_resultclass(self) -> type[RecordingResult]:
        """Return the class that keeps outcomes."""
        return RecordingResult

    def build_suite(self, *args: Any, **kwargs: Any) -> Any:
        """Find the tests, and allow the replica to those that shall read from it."""
        suite = super().build_suite(*args, **kwargs)
        if self.mode.is_scoped or self.mode.is_replicated:
            scoping.allow_replica(suite, in_transactions=self.mode.is_committed)
        return suite

    def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> int:
        """Keep what was found. Some tests run a suite inside: the outermost ends last."""
        type(self).recorded = Run(result.outcomes, result.reads)
        return super().suite_result(suite, result, **kwargs)
