"""What the page says of reasons, states and counts, in the language of whoever reads it.

The rules themselves know no Django. Their sentences stand here once more, for the tools that collect what is to be
translated; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

OF_REASONS = (
    _("the package is switched off by its setting ENABLED"),
    _("the code asked for the primary"),
    _("a transaction is open on that server"),
    _("the model is read from the primary only"),
    _("outside a request, task or scope"),
    _("this scope has written"),
    _("the replica failed while it served this scope"),
    _("the request may write"),
    _("this view has saved what it had read from a replica"),
    _("the event loop may not be blocked, and nothing is decided yet"),
    _("the token store cannot be read"),
    _("the token store does not know this session or credential"),
    _("a write of this user could not be located in the WAL"),
    _("the token store has been emptied"),
    _("the token is of another timeline than the primary"),
    _("the session on the primary has settings that the one on the replica has not"),
    _("nothing has to be waited for"),
    _("the replica has replayed the token"),
    _("the replica replayed the token within the wait budget"),
    _("all replicas lag too far, and this one the least"),
    _("what the reader has seen, not written, was given up to spare the primary"),
    _("the primary is down, and the site goes on reading"),
    _("no replica has replayed the token, or all lag too far"),
    _("no replica is in good health"),
    _("by SHADOW or ROLLOUT this reader is not sent to replicas yet"),
)

OF_STATES = (
    _("not looked at yet"),
    _("a hot standby that answers"),
    _("cannot be connected to, or does not answer"),
    _("takes too long to answer"),
    _("accepts connections and does not answer"),
    _("is the primary itself"),
    _("is no standby any more: promoted, or never one"),
    _("follows another timeline than the primary"),
    _("does not tell what it has replayed"),
    _("belongs to another cluster than the primary"),
    _("ahead of the primary: it follows another history"),
    _("takes writes"),
    _("does not answer, or is a standby"),
    _("a hot standby that answers, and lags by more than MAX_LAG"),
    _("a hot standby that answers; how far it lags is not known yet"),
    _("the primary does not answer, and replicas serve reads in its place"),
)

OF_REMARKS = (
    _("its replay is paused"),
    _("it receives no WAL"),
)

_DELAYS = re.compile(r"it delays replay by (\S+) s")

OF_LONELINESS = (
    _("SHARE_COUNTS is off"),
    _("the cache does not answer"),
    _("no process has told of itself yet"),
)

OF_COUNTS: Mapping[str, object] = {
    "retried_refused_write": _("run again on the primary: the replica refused a write"),
    "retried_replica_fault": _("run again on the primary: the replica failed"),
    "retried_unsupported": _("run again on the primary: a replica cannot do that"),
    "retried_replayed_lock": _(
        "run again on the primary: a lock was replayed, and not yet its end"
    ),
    "retried_elsewhere": _("run again on the primary: another server answered than was chosen"),
    "retried_behind": _(
        "run again on the primary: the server that answered lacked what was written"
    ),
    "retried_first_fetch": _("run again on the primary: the first rows did not come"),
    "repeated_after_conflict": _(
        "run again on the replica, which had cancelled it to go on replaying"
    ),
    "statements_unproven": _("run on the primary: no answer could have proven what it shows"),
    "connects_failed": _("connections to replicas that could not be opened"),
    "waits_by_server": _("waits that PostgreSQL itself ended in time"),
    "waits_by_server_in_vain": _("waits that PostgreSQL did not end in time"),
    "waits_ended": _("statements that waited for a replica that hung"),
    "wal_flushes": _("records that had the primary write out WAL"),
    "readers_unknown": _("readers without a record in a cache that drops keys"),
    "tokens_stored": _("tokens written to the store"),
    "tokens_unstored": _("tokens that the store refused"),
    "writes_unlocated": _("writes that could not be located: their user reads from the primary"),
    "saved_from_replica": _("objects saved that were read from a replica"),
    "reinserted_from_replica": _("of these, rows that had been deleted, and are there again"),
    "writes_in_queries": _("writes refused in a query of CQRS"),
    "cookies_refused": _("cookies refused: not ours, broken or too old"),
    "tokens_refused": _("texts refused as a token"),
    "transactions_outwaited": _("tokens of transactions whose end is not known"),
    "fallbacks_refused": _("reads that the primary was spared by PRIMARY_SHARE"),
}


def told(sentence: str) -> str:
    """Return a sentence of the package in the reader's language, with its remarks, if it has any.

    Args:
        sentence: in English.
    """
    if not sentence:
        return ""
    whole = gettext(sentence)
    if whole != sentence or ": " not in sentence:
        return whole
    start, _colon, remarks = sentence.rpartition(": ")
    return f"{gettext(start)}: {', '.join(map(_told_remark, remarks.split(', ')))}"


def _told_remark(remark: str) -> str:
    delay = _DELAYS.fullmatch(remark)
    if delay is None:
        return gettext(remark)
    return gettext("it delays replay by %(seconds)s s") % {"seconds": delay[1]}


def told_of_count(name: str) -> str:
    """Return what a count counts; empty where that is not known here.

    Args:
        name: as ``get_stats()`` gives it.
    """
    return str(OF_COUNTS.get(name, ""))
