"""Run Django's own tests without the package and with it, and print what it breaks.

Exit code 0: nothing is broken. 1: something is. 2: nothing can be said.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django

from tests.django_suite import expected, modes, outcomes, server, source
from tests.django_suite.modes import REPLICA, Mode
from tests.django_suite.outcomes import Comparison, Run, compare
from tests.django_suite.running import RunError, Suite

APPS = (
    "basic",
    "bulk_create",
    "get_or_create",
    "multiple_database",
    "prefetch_related",
    "select_for_update",
    "sessions_tests",
    "transactions",
)


HEADER = (
    "Django",
    "mode",
    "tests",
    "skipped",
    "fail without the package, too",
    "new failures",
    "cannot pass",
    "reads from the replica",
)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite", description=__doc__)
    parser.add_argument(
        "--apps",
        nargs="+",
        default=APPS,
        metavar="APP",
        help=f"apps, classes or tests of the suite, or 'all' (default: {' '.join(APPS)})",
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=[*modes.BASELINES, *modes.CHOICES],
        default=modes.DEFAULT,
        help=f"what to compare with its baseline (default: {' '.join(modes.DEFAULT)})",
    )
    parser.add_argument(
        "--control",
        action="store_true",
        help="also run a router that reads blindly from the replica: it has to break tests",
    )
    parser.add_argument(
        "--router",
        metavar="PATH",
        help="measure this router instead of the package",
    )
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="SECONDS", help="of one run (1800)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument(
        "--dsn", help="use this PostgreSQL server, whose user may create databases; else start one"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=source.default_cache(),
        help="where Django's source distribution is kept (%(default)s)",
    )
    return parser.parse_args(argv)


def _modes(options: argparse.Namespace) -> list[Mode]:
    chosen = [mode for name, mode in modes.CHOICES.items() if name in options.mode]
    if not options.router:
        return chosen
    # Another package knows no scope: "scoped" would be "installed" once more.
    return [
        modes.with_router(options.router, mode)
        for mode in chosen
        if mode.is_committed or not mode.is_scoped
    ]


def _controls(chosen: Sequence[Mode]) -> list[Mode]:
    """Return one control for each kind of server and data that the modes run on."""
    kinds = {(mode.is_committed, mode.is_replicated): modes.control(mode) for mode in chosen}
    return list(kinds.values())


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _report(mode: Mode, run: Run, comparison: Comparison) -> None:
    _say(f"{mode.name}: {_summary(run)}, {len(comparison.new_failures)} new failures")
    for reads, number in sorted(run.reads.items()):
        _say(f"  {number:>6} reads from {reads}")
    if not _proves_something(mode, run):
        _say("  No read went to the replica, so this mode proves nothing.")
    for test_id in comparison.new_failures:
        _say(f"  broken   {test_id}\n           {_last_line(run.outcomes[test_id].detail)}")
    for test_id in comparison.expected:
        reason = expected.failures(mode)[outcomes.test_of(test_id)]
        _say(f"  cannot pass here  {test_id}: {reason}")
    for test_id in comparison.missing:
        _say(f"  not run  {test_id}")
    for test_id in comparison.extra:
        _say(f"  only now {test_id}")


def _summary(run: Run) -> str:
    return (
        f"{len(run.tests)} tests, {len(run.tests - run.executed)} skipped, "
        f"{len(run.bad)} failed, {run.seconds:.0f} s"
    )


def _row(mode: Mode, baseline: Run, run: Run, comparison: Comparison) -> tuple[str, ...]:
    numbers = (
        len(run.tests),
        len(run.tests - run.executed),
        len(baseline.bad & baseline.tests),
        # To skip a test is to break it.
        len(comparison.new_failures) + len(comparison.missing),
        len({outcomes.test_of(test_id) for test_id in comparison.expected}),
        run.reads_from(REPLICA),
    )
    return django.__version__, mode.name, *(f"{number:,}" for number in numbers)


def _say_table(rows: Sequence[Sequence[str]]) -> None:
    for cells in (HEADER, ["---"] * len(HEADER), *rows):
        _say(f"| {' | '.join(cells)} |")


def _as_json(run: Run, comparison: Comparison | None) -> dict[str, Any]:
    return {
        "tests": len(run.tests),
        "executed": len(run.executed),
        "seconds": round(run.seconds, 1),
        "reads": dict(run.reads),
        "bad": {test_id: vars(run.outcomes[test_id]) for test_id in sorted(run.bad)},
    } | (vars(comparison) if comparison else {})


class _Baselines:
    """Runs without the package, each made when it is first asked for."""

    def __init__(self, suite: Suite, runs: dict[str, Any]) -> None:
        self._suite = suite
        self._runs = runs
        self._made: dict[str, Run] = {}

    def __getitem__(self, name: str) -> Run:
        if name not in self._made:
            run = self._made[name] = self._suite.run(modes.BASELINES[name])
            self._runs[name] = _as_json(run, None)
            _say(f"{name}: {_summary(run)}")
            for test_id in sorted(run.bad):
                reason = expected.BY_THEMSELVES.get(outcomes.test_of(test_id))
                _say(f"  fails by itself  {test_id}" + (f": {reason}" if reason else ""))
        return self._made[name]


def _check(options: argparse.Namespace, suite: Suite) -> int:
    chosen = _modes(options)
    runs: dict[str, Any] = {}
    baselines = _Baselines(suite, runs)
    # A run of nothing breaks nothing and proves nothing.
    is_clean = bool(baselines[modes.BASELINE.name].executed)
    rows = []
    for mode in chosen:
        baseline = baselines[mode.baseline]
        run = suite.run(mode)
        comparison = compare(baseline, run, expected.failures(mode))
        _report(mode, run, comparison)
        runs[mode.name] = _as_json(run, comparison)
        rows.append(_row(mode, baseline, run, comparison))
        is_clean = is_clean and comparison.is_clean and _proves_something(mode, run)
    for mode in _controls(chosen) if options.control else ():
        run = suite.run(mode)
        comparison = compare(baselines[mode.baseline], run)
        runs[f"control {mode.name}"] = _as_json(run, comparison)
        number = len(comparison.new_failures)
        verdict = "as it must" if number else "so this check proves nothing"
        _say(f"control {mode.name}: {_summary(run)}, {number} new failures, {verdict}")
        is_clean = is_clean and number > 0
    _say_table(rows)
    if options.json:
        versions = {"django": django.__version__, "python": sys.version.split()[0]}
        options.json.write_text(
            json.dumps(versions | {"clean": is_clean, "modes": runs}, indent=2), encoding="utf-8"
        )
    return 0 if is_clean else 1


def _proves_something(mode: Mode, run: Run) -> bool:
    return not mode.is_scoped or run.reads_from(REPLICA) > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit code."""
    options = _parse(argv)
    # So that the server is stopped and the directories are removed then, too.
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(2))
    needs_standby = any(mode.is_replicated for mode in _modes(options))
    labels = [] if "all" in options.apps else options.apps
    try:
        archive = source.fetch(django.__version__, options.cache)
        with (
            TemporaryDirectory(prefix="django-source-") as directory,
            server.running(options.dsn, needs_standby=needs_standby) as primary,
        ):
            if not labels:
                server.require_collation(primary)
            _say(f"Django {django.__version__}, Python {sys.version.split()[0]}")
            suite = Suite(
                tests=source.unpack(archive, Path(directory)),
                server=primary,
                labels=labels,
                parallel=options.parallel,
                timeout=options.timeout,
            )
            return _check(options, suite)
    except (source.SourceError, server.ServerError, RunError) as error:
        _say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
