"""The command line."""

from __future__ import annotations

import json
import signal
import sys
from argparse import ArgumentParser, Namespace

from testproject.cluster import ClusterError
from testproject.cluster.haproxy import BALANCES
from testproject.cluster.pgbouncer import POOL_MODES
from tests.torture.faults import FAULTS, USUAL
from tests.torture.report import document, is_passed, text
from tests.torture.run import ROUTER, STRICT, Plan, new_cluster, run
from tests.torture.sabotage import SABOTAGES
from tests.torture.visitors import Habits

INTERRUPTED = 130


def main() -> int:
    """Do what the command line says and return the exit status."""
    options = _parser().parse_args()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ClusterError as error:
        _tell(str(error))
        return 1


def _stop(signum: int, frame: object) -> None:
    # Once is enough: what stops the servers must not be interrupted itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    # On stderr: stdout is for the result alone.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _run(options: Namespace) -> int:
    plan = Plan(
        seconds=options.minutes * 60,
        seed=options.seed,
        workers=options.workers,
        replicas=options.replicas,
        users=options.users,
        faults=list(FAULTS) if options.evicting else options.faults,
        control=options.control,
        router=STRICT if options.strict else ROUTER,
        habits=Habits(times=options.times),
        pooler=options.pooler,
        atomic_requests=options.atomic_requests,
        endpoint=options.endpoint,
    )
    with new_cluster(plan.replicas) as cluster:
        result = run(plan, cluster, (lambda line: None) if options.quiet else _tell)
    report = json.dumps(document(result), indent=2) if options.json else text(result)
    sys.stdout.write(f"{report}\n")
    return 0 if is_passed(result) else 1


def _faults(names: str) -> list[str]:
    chosen = [name for name in names.split(",") if name]
    unknown = sorted(set(chosen) - set(FAULTS))
    if unknown:
        message = f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}"
        raise ValueError(message)
    return chosen


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and of all choices")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--workers", type=int, default=3, help="of the site")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument(
        "--times", type=int, default=Habits().times, help="how often one request reads, at most"
    )
    parser.add_argument(
        "--faults",
        type=_faults,
        default=list(USUAL),
        metavar="NAME,...",
        help=f"of {', '.join(FAULTS)}; default: all but cache_evict",
    )
    parser.add_argument(
        "--evicting", action="store_true", help="all faults, with a cache that drops keys"
    )
    parser.add_argument(
        "--control", choices=SABOTAGES, default="", help="sabotage the package: must be found out"
    )
    parser.add_argument(
        "--pooler", choices=POOL_MODES, default="", help="mode of a PgBouncer for each server"
    )
    parser.add_argument(
        "--atomic-requests",
        action="store_true",
        help="the site sets ATOMIC_REQUESTS on its primary",
    )
    parser.add_argument(
        "--strict", action="store_true", help="monotonic reads may not yield: MONOTONIC_SHARE is 1"
    )
    parser.add_argument(
        "--endpoint",
        choices=(*BALANCES, *POOL_MODES),
        default="",
        help="one alias for all replicas, by HAProxy or by PgBouncer in that mode",
    )
    parser.add_argument("--quiet", action="store_true", help="tell nothing before the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
