"""The command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from tests.pooler_scale.run import Outcome, run


def text(outcome: Outcome) -> str:
    """Return what came of it, in words."""
    counts = outcome.counts
    lines = [
        f"{outcome.clients} clients, {counts['open']} connections open at once "
        f"(poolers saw {outcome.peak_clients})",
        f"server connections: at most {outcome.peak_servers} of {outcome.server_connections}",
        f"connecting took {outcome.connect_seconds:.1f} s, "
        f"writing and reading back {outcome.work_seconds:.1f} s",
        f"reads: {counts['reads']}, by replica {counts['reads by replica']}, "
        f"by primary {counts['reads by primary']}",
        f"stale: {counts['stale']}, errors: {counts['errors']}",
        *(f"  {n} x {name}" for name, n in counts.most_common() if name.startswith("error ")),
        f"decisions: {dict(outcome.stats)}",
        "passed" if outcome.is_passed else "FAILED",
    ]
    return "\n".join(lines)


def main() -> int:
    """Do what the command line says and return the exit status."""
    parser = ArgumentParser(prog="python -m tests.pooler_scale", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--server-connections", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=480.0, help="after which to give up")
    options = parser.parse_args()
    outcome = run(
        options.clients,
        options.server_connections,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    sys.stdout.write(f"{text(outcome)}\n")
    return 0 if outcome.is_passed else 1


if __name__ == "__main__":
    sys.exit(main())
