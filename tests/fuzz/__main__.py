"""The command line."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import Any

from testproject.cluster import Cluster
from testproject.cluster.programs import site_environment

DATABASE = "app"


def main() -> int:
    """Do what the command line says and return the exit status."""
    options = _parser().parse_args()
    with ExitStack() as stack:
        _start_servers(stack)
        return _run(options)


def _start_servers(stack: ExitStack) -> None:
    """Start a primary, a replica and a cache, and point Django to them."""
    cluster = stack.enter_context(Cluster(replicas=1, cache=True, databases=(DATABASE,)))
    assert cluster.cache is not None
    os.environ.update(site_environment(cluster.django_databases(DATABASE), cluster.cache.url))
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from django_replica_router.replicas.registry import stop_monitors

    stack.callback(connections.close_all)
    stack.callback(stop_monitors)
    call_command("migrate", verbosity=0)
    cluster.wait_caught_up()


def _run(options: Namespace) -> int:
    # Not before Django knows its settings.
    import logging

    from tests.fuzz.controls import CONTROLS, sabotaged
    from tests.fuzz.surface import Tally, run
    from tests.fuzz.surfaces import SURFACES, shares

    # What the package has to say of garbage would be a million lines.
    logging.getLogger("django_replica_router").setLevel(logging.CRITICAL)
    logging.getLogger("django").setLevel(logging.CRITICAL)
    names = [name for name in options.surfaces.split(",") if name] or list(SURFACES)
    if options.control:
        names = [CONTROLS[options.control].surface]
    tallies: dict[str, Tally] = {}
    with ExitStack() as stack:
        if options.control:
            stack.enter_context(sabotaged(options.control))
        for name, cases in shares(names, options.cases).items():
            sys.stderr.write(f"{name}: {cases} cases\n")
            tallies[name] = run(SURFACES[name], options.seed, cases)
    told = _document(options, tallies)
    text = json.dumps(told, indent=2) if options.json else _text(told)
    sys.stdout.write(f"{text}\n")
    return 1 if told["found"] else 0


def _document(options: Namespace, tallies: dict[str, Any]) -> dict[str, Any]:
    from tests.fuzz.surfaces import SURFACES

    return {
        "seed": options.seed,
        "control": options.control,
        "cases": sum(tally.cases for tally in tallies.values()),
        "seconds": round(sum(tally.seconds for tally in tallies.values()), 1),
        "found": sum(tally.found for tally in tallies.values()),
        "surfaces": {
            name: {
                "what": SURFACES[name].what,
                "cases": tally.cases,
                "seconds": round(tally.seconds, 1),
                "found": tally.found,
                "kinds": dict(tally.kinds.most_common()),
                "findings": tally.findings,
            }
            for name, tally in tallies.items()
        },
    }


def _text(told: dict[str, Any]) -> str:
    lines = [f"{'surface':<11} {'cases':>8} {'found':>6} {'seconds':>8}  what"]
    for name, row in told["surfaces"].items():
        lines.append(
            f"{name:<11} {row['cases']:>8} {row['found']:>6} {row['seconds']:>8}  {row['what']}"
        )
        lines.append(f"{'':<11} {', '.join(f'{k}: {n}' for k, n in row['kinds'].items())}")
        lines += [f"{'':<11} {finding}" for finding in row["findings"]]
    lines.append(
        f"{'all':<11} {told['cases']:>8} {told['found']:>6} {told['seconds']:>8}  seed {told['seed']}"
    )
    return "\n".join(lines)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of all cases")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--surfaces", default="", metavar="NAME,...", help="default: all")
    parser.add_argument("--control", default="", help="take a rule out: must be found")
    return parser


if __name__ == "__main__":
    sys.exit(main())
