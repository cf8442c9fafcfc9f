"""What became of each test of a run, and what differs between two runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PASSED = "passed"
SKIPPED = "skipped"
EXPECTED_FAILURE = "expected failure"
FAILED = "failed"
ERROR = "error"
UNEXPECTED_SUCCESS = "unexpected success"

BAD = frozenset({FAILED, ERROR, UNEXPECTED_SUCCESS})

# The parameters of a subtest may hold the representation of an object, which is another in
# every process.
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")

# How the id of what is no test and no subtest begins.
_SET_UPS = ("setUpClass ", "setUpModule ", "tearDownClass ", "tearDownModule ")


def normalise(test_id: str) -> str:
    """Return the id without what differs from process to process."""
    return _ADDRESS.sub("0x", test_id)


def test_of(test_id: str) -> str:
    """Return the id of the test that a subtest belongs to, and any other id as it is."""
    # A subtest's is the test's with its message and parameters behind it.
    return test_id if test_id.startswith(_SET_UPS) else test_id.partition(" ")[0]


@dataclass(frozen=True)
class Outcome:
    """What became of one test, subtest or class set-up.

    Args:
        kind: one of the names above.
        is_test: it is a test of its own, not a subtest or the set-up of a class or module.
        detail: the traceback, or the reason of a skip.
    """

    kind: str
    is_test: bool
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """One run of the suite.

    Args:
        outcomes: by id.
        reads: how many went to which alias for which reason, where tests ran in a scope.
        seconds: how long it took, databases included.
    """

    outcomes: Mapping[str, Outcome]
    reads: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @cached_property
    def bad(self) -> frozenset[str]:
        """The ids that failed, were in error, or passed where a failure is expected."""
        return frozenset(
            test_id for test_id, outcome in self.outcomes.items() if outcome.kind in BAD
        )

    @cached_property
    def tests(self) -> frozenset[str]:
        """The ids of all tests, those that were skipped included."""
        return frozenset(test_id for test_id, outcome in self.outcomes.items() if outcome.is_test)

    @cached_property
    def executed(self) -> frozenset[str]:
        """The ids of the tests that were not skipped."""
        return frozenset(
            test_id for test_id in self.tests if self.outcomes[test_id].kind != SKIPPED
        )

    def reads_from(self, alias: str) -> int:
        """Return how many reads went to that alias."""
        return sum(number for reads, number in self.reads.items() if reads.split()[0] == alias)


@dataclass(frozen=True)
class Comparison:
    """What a run changed, seen from the baseline.

    Args:
        new_failures: bad here and not in the baseline.
        expected: those that nothing which routes can avoid; not among the new failures.
        missing: executed in the baseline and not here. Skipping a test breaks it too.
        extra: executed here and not in the baseline.
    """

    new_failures: tuple[str, ...]
    expected: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing was broken."""
        return not (self.new_failures or self.missing or self.extra)


def compare(baseline: Run, run: Run, expected: Iterable[str] = ()) -> Comparison:
    """Tell what the run changed.

    Args:
        baseline: without the package.
        run: with it.
        expected: ids of tests that cannot pass here, each with its subtests.
    """
    new = run.bad - baseline.bad
    cannot_pass = set(expected)
    excused = {test_id for test_id in new if test_of(test_id) in cannot_pass}
    return Comparison(
        new_failures=_sorted(new - excused),
        expected=_sorted(excused),
        missing=_sorted(baseline.executed - run.executed),
        extra=_sorted(run.executed - baseline.executed),
    )


def _sorted(test_ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(test_ids))


def dump(path: Path, run: Run) -> None:
    """Write a run."""
    content = {
        "outcomes": {test_id: vars(outcome) for test_id, outcome in run.outcomes.items()},
        "reads": dict(run.reads),
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def load(path: Path, seconds: float) -> Run:
    """Read what ``dump`` wrote, of a run that took so long."""
    content = json.loads(path.read_text(encoding="utf-8"))
    outcomes = {test_id: Outcome(**fields) for test_id, fields in content["outcomes"].items()}
    return Run(outcomes, content["reads"], seconds)
