"""Tell how the servers are, and what was read from them."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.template.defaultfilters import filesizeformat

from django_replica_router.conf import get_config
from django_replica_router.management.shared import add_timeout, telling_itself
from django_replica_router.status.reads import Reads, read_told, sum_up
from django_replica_router.status.servers import ClusterStatus, ServerStatus, all_clusters, look

HEADINGS = ("server", "address", "state", "version", "timeline", "LSN", "behind", "reads", "")
ALL_SERVE, SOME_DO_NOT, NONE_SERVES = 0, 1, 2
CLEAR = "\033[2J\033[H"


class Command(BaseCommand):
    """Print a line for each server."""

    help = (
        "Tell how each server is, how far each replica is behind, and which share of the last minute's reads "
        "it has had. The exit code is 0 where all serve, 1 where a replica does not, and 2 where no replica "
        "does or a primary does not answer."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the options."""
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        parser.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=2.0,
            metavar="SECONDS",
            help="tell again every 2 seconds, or every so many, until interrupted",
        )
        add_timeout(parser)

    @telling_itself()
    def handle(self, *args: Any, **options: Any) -> None:
        """Tell once, or again and again."""
        primaries = list(all_clusters())
        if not primaries:
            raise CommandError(
                "No replica is configured. Set TEST = {'MIRROR': 'default'} on its alias in DATABASES."
            )
        code = self._tell(primaries, options)
        try:
            while options["watch"]:
                time.sleep(options["watch"])
                code = self._tell(primaries, options)
        except KeyboardInterrupt:
            pass
        if code:
            sys.exit(code)

    def _tell(self, primaries: Sequence[str], options: Mapping[str, Any]) -> int:
        clusters = [look(primary, options["timeout"]) for primary in primaries]
        told, why = read_told(get_config())
        reads = None if why else sum_up(told)
        code = max(_code(cluster) for cluster in clusters)
        if options["json"]:
            self.stdout.write(json.dumps(_document(clusters, reads, code)))
            return code
        if options["watch"] and self.stdout.isatty():
            self.stdout.write(CLEAR, ending="")
        for cluster in clusters:
            for line in self._lines(cluster, reads):
                self.stdout.write(line)
        self.stdout.write(_told_by(reads, why))
        return code

    def _lines(self, cluster: ClusterStatus, reads: Reads | None) -> list[str]:
        aliases = list(dict.fromkeys(server.alias for server in cluster.servers))
        rows = [_row(server, reads, aliases) for server in cluster.servers]
        widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
        lines = [_aligned(row, widths) for row in (HEADINGS, *rows)]
        return [
            self.style.MIGRATE_HEADING(lines[0]),
            *(
                self.style.SUCCESS(line) if server.serves else self.style.ERROR(line)
                for line, server in zip(lines[1:], cluster.servers, strict=True)
            ),
        ]


def _row(server: ServerStatus, reads: Reads | None, aliases: Sequence[str]) -> tuple[str, ...]:
    share = None if reads is None else reads.share(server.alias, aliases)
    return (
        server.alias,
        server.address or "-",
        server.state,
        server.version or "-",
        "-" if server.timeline is None else str(server.timeline),
        server.lsn or "-",
        _behind(server),
        "-" if share is None else f"{share:.0%}",
        server.sentence,
    )


def _behind(server: ServerStatus) -> str:
    if server.role == "primary":
        return ""
    size = "-" if server.bytes_behind is None else filesizeformat(server.bytes_behind)
    age = "not known yet" if server.seconds_behind is None else f"{server.seconds_behind:.1f} s"
    return f"{size}, {age}".replace("\xa0", " ")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _code(cluster: ClusterStatus) -> int:
    replicas = {server.alias for server in cluster.servers[1:]}
    out = cluster.out_of_service
    if not cluster.primary_serves or len(out) == len(replicas):
        return NONE_SERVES
    return SOME_DO_NOT if out else ALL_SERVE


def _told_by(reads: Reads | None, why: str) -> str:
    if reads is None:
        return f"Which share of the reads each has had is not known: {why}."
    if not reads.by_alias:
        return "No process has told of reads in the last minute."
    told = _listed(reads.by_reason)
    lines = [f"Reads of the last minute, of {reads.processes} processes: {told}."]
    if reads.shadow_by_alias:
        total = sum(reads.shadow_by_alias.values())
        servers = ", ".join(
            f"{alias} {n / total:.0%}" for alias, n in reads.shadow_by_alias.items()
        )
        lines += [
            f"Of {total} that are not routed yet (SHADOW, ROLLOUT) would have been read: {servers}.",
            f"The reasons: {_listed(reads.shadow_by_reason)}.",
        ]
    return "\n".join(lines)


def _listed(numbers: Mapping[str, int]) -> str:
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number}" for name, number in ordered)


def _document(clusters: Sequence[ClusterStatus], reads: Reads | None, code: int) -> dict[str, Any]:
    return {
        "code": code,
        "clusters": {
            cluster.primary: [server._asdict() for server in cluster.servers]
            for cluster in clusters
        },
        "reads": None if reads is None else reads._asdict(),
    }
