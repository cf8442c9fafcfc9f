"""What the benchmark of offload has measured, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.figures import Spread, percentile
from benchmarks.harness import Plot, Result, Table
from benchmarks.harness import Verdict as Target
from benchmarks.load.crowd import Log
from benchmarks.load.variants import DEFAULT, Variant
from benchmarks.oracle import Promise, Verdict

JITTER = "jitter"
TARGET = 0.99


class Point(NamedTuple):
    """One case.

    Args:
        lag: seconds by which the replicas delay every commit, or ``JITTER``.
        write_share: the part of the requests that write.
        users: how many users there are.
    """

    lag: float | str
    write_share: float
    users: int

    @property
    def lag_text(self) -> str:
        """Return the lag as tables show it."""
        return self.lag if isinstance(self.lag, str) else f"{self.lag * 1000:g} ms"


@dataclass(slots=True)
class Round:
    """What one contender's users met with in one round of a point."""

    log: Log
    verdicts: dict[Promise, Verdict]


@dataclass(slots=True)
class Measured:
    """Everything that was measured.

    Args:
        rounds: by point and variant.
        pauses: seconds from one look of the oracle at a replica to the end of the next.
    """

    rounds: dict[tuple[Point, Variant], list[Round]] = field(default_factory=dict)
    pauses: list[float] = field(default_factory=list)

    def points(self) -> list[Point]:
        """Return the points, in the order of their measurement."""
        return list(dict.fromkeys(point for point, _ in self.rounds))

    def variants(self) -> list[Variant]:
        """Return the variants."""
        names = {variant.name: variant for _, variant in self.rounds}
        return list(names.values())

    def verdict(self, point: Point, variant: Variant, promise: Promise) -> Verdict:
        """Return the sum of all rounds of a point."""
        total = Verdict()
        for each in self.rounds[point, variant]:
            total.add(each.verdicts[promise])
        return total

    def log(self, point: Point, variant: Variant) -> Log:
        """Return the log of all rounds of a point."""
        total = Log()
        for each in self.rounds[point, variant]:
            total.add(each.log)
        return total


def result_of(
    measured: Measured, over_http: Measured, left_out: dict[str, str], notes: list[str]
) -> Result:
    """Return what is to be reported."""
    return Result(
        tables=[
            _shares(measured, "Share of reads on replicas, and in that of the oracle"),
            _contenders(measured),
            _waits(measured),
            _missed(measured),
            _shares(over_http, "The same over HTTP, a sample of the points"),
        ],
        plots=[_plot(measured)],
        verdicts=_targets(measured, over_http),
        notes=[*notes, _doubt(measured)],
        left_out=left_out,
    )


def _shares(measured: Measured, title: str) -> Table:
    table = Table(
        title,
        [
            "contender",
            "lag",
            "writes",
            "users",
            "reads",
            "on replicas, %",
            "oracle, %",
            "ratio",
            "ratio by round",
            "stale",
        ],
    )
    for point in measured.points():
        verdict = measured.verdict(point, DEFAULT, DEFAULT.promise)
        log = measured.log(point, DEFAULT)
        table.add(
            DEFAULT.name,
            point.lag_text,
            f"{point.write_share * 100:g} %",
            point.users,
            verdict.reads,
            100 * verdict.by_contender / max(1, verdict.reads),
            100 * verdict.by_oracle / max(1, verdict.reads),
            verdict.ratio,
            _spread(measured, point),
            log.stale_own + log.stale_seen,
        )
    return table


def _spread(measured: Measured, point: Point) -> Spread | None:
    ratios = [
        ratio
        for each in measured.rounds[point, DEFAULT]
        if (ratio := each.verdicts[DEFAULT.promise].ratio) is not None
    ]
    return Spread.of(ratios) if ratios else None


def _sum(measured: Measured, variant: Variant, points: Sequence[Point]) -> tuple[Log, Verdict]:
    log, verdict = Log(), Verdict()
    for point in points:
        log.add(measured.log(point, variant))
        verdict.add(measured.verdict(point, variant, variant.promise))
    return log, verdict


def _by_lag(measured: Measured) -> list[tuple[str, list[Point]]]:
    lags: dict[str, list[Point]] = {}
    for point in measured.points():
        lags.setdefault(point.lag_text, []).append(point)
    return list(lags.items())


def _contenders(measured: Measured) -> Table:
    table = Table(
        "All contenders, over all shares of writes and numbers of users",
        [
            "contender",
            "lag",
            "reads",
            "on replicas, %",
            "in the share of the oracle",
            "stale: own writes",
            "stale: taken back",
            "errors",
        ],
        note="Each is judged by the oracle of what the package promises with the same setting, the "
        "others by that of read your writes. A share above 1 with stale reads is no merit.",
    )
    for lag, points in _by_lag(measured):
        for variant in measured.variants():
            log, verdict = _sum(measured, variant, points)
            table.add(
                variant.name,
                lag,
                verdict.reads,
                100 * verdict.by_contender / max(1, verdict.reads),
                verdict.ratio,
                log.stale_own,
                log.stale_seen,
                log.errors,
            )
    return table


def _packages(measured: Measured) -> list[Variant]:
    return [item for item in measured.variants() if item.promise is Promise.SHOWN]


def _waits(measured: Measured) -> Table:
    table = Table(
        "What waiting brings, and what it costs",
        [
            "contender",
            "lag",
            "in the share of the oracle",
            "at the worst point",
            "read p50, ms",
            "p95, ms",
            "p99, ms",
        ],
        note="The time of a read, from its arrival to its answer, on a machine that serves all "
        "contenders at the same time: to be compared with each other only.",
    )
    for lag, points in _by_lag(measured):
        for variant in _packages(measured):
            log, verdict = _sum(measured, variant, points)
            ratios = [measured.verdict(point, variant, variant.promise).ratio for point in points]
            table.add(
                variant.name,
                lag,
                verdict.ratio,
                min((ratio for ratio in ratios if ratio is not None), default=None),
                *[1000 * percentile(log.seconds or [0.0], share) for share in (0.5, 0.95, 0.99)],
            )
    return table


def _missed(measured: Measured) -> Table:
    table = Table(
        "Reads on the primary that the oracle would have served, by the package's reason",
        ["contender", "lag", "reads", "missed", "reasons", "served and not by the oracle"],
    )
    for lag, points in _by_lag(measured):
        for variant in measured.variants():
            if variant.contender != "package":
                continue
            _, verdict = _sum(measured, variant, points)
            table.add(
                variant.name,
                lag,
                verdict.reads,
                verdict.missed.total(),
                _reasons(verdict.missed),
                verdict.gained,
            )
    return table


def _reasons(missed: Counter[str]) -> str:
    return ", ".join(f"{reason or 'none told'} {number}" for reason, number in missed.most_common())


def _plot(measured: Measured) -> Plot:
    lags = _by_lag(measured)
    plot = Plot(
        "share",
        "Reads on replicas, over all shares of writes and numbers of users",
        "lag",
        "%",
        kind="bar",
        ticks=[lag for lag, _ in lags],
    )
    for variant in measured.variants():
        if variant in _packages(measured) and variant != DEFAULT:
            continue
        for number, (_, points) in enumerate(lags):
            _, verdict = _sum(measured, variant, points)
            plot.add(variant.name, number, 100 * verdict.by_contender / max(1, verdict.reads))
    for number, (_, points) in enumerate(lags):
        _, verdict = _sum(measured, DEFAULT, points)
        plot.add("oracle", number, 100 * verdict.by_oracle / max(1, verdict.reads))
    return plot


def _targets(measured: Measured, over_http: Measured) -> list[Target]:
    stale = sum(
        log.stale_own + log.stale_seen
        for each in (measured, over_http)
        for point in each.points()
        for log in [each.log(point, DEFAULT)]
    )
    ratios = {
        point: measured.verdict(point, DEFAULT, DEFAULT.promise).ratio
        for point in measured.points()
    }
    known = {point: ratio for point, ratio in ratios.items() if ratio is not None}
    worst = min(known, key=lambda point: known[point])
    reached = sum(ratio >= TARGET for ratio in known.values())
    return [
        Target("no stale read", f"{stale}", stale == 0),
        Target(
            f"at least {TARGET:g} of the oracle at every point",
            f"at {reached} of {len(known)} points; the worst is {known[worst]:.3f} at lag "
            f"{worst.lag_text}, {worst.write_share * 100:g} % writes, {worst.users} users",
            reached == len(known),
        ),
    ]


def _doubt(measured: Measured) -> str:
    pauses = measured.pauses or [0.0]
    return (
        "The oracle's doubt, which it uses in its own favour: from one look at a replica to the end "
        f"of the next {1000 * percentile(pauses, 0.5):.1f} ms at the median, "
        f"{1000 * percentile(pauses, 0.99):.1f} ms at p99, {1000 * max(pauses):.0f} ms at most."
    )
