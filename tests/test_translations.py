"""The status page's languages: each sentence has its translation, and what is read is what was written."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import polib
import pytest
from django.utils import translation
from django.utils.translation.template import templatize

from django_replica_router import stats
from django_replica_router.contrib.status import sentences
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.status import overview, reads, servers, serving

APP = Path(sentences.__file__).parent
MARKED = {"_", "gettext", "gettext_lazy", "gettext_noop"}
IN_TEMPLATE = re.compile(
    r"n?gettext\((u?(?:'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"))"
)


def in_code() -> set[str]:
    """Return what the code of the app gives to be translated."""
    calls = [
        node
        for file in APP.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
    ]
    return {
        call.args[0].value
        for call in calls
        if call.func.id in MARKED and isinstance(call.args[0], ast.Constant)  # type: ignore[attr-defined]
    }


def in_templates() -> set[str]:
    """Return what its templates do."""
    texts = [templatize(file.read_text()) for file in APP.rglob("*.html")]
    return {ast.literal_eval(found) for text in texts for found in IN_TEMPLATE.findall(text)}


@pytest.mark.parametrize("language", ["es", "pt"])
def test_each_sentence_is_translated(language: str) -> None:
    """None is missing, none is a guess, and none is there that nobody says any more."""
    catalog = polib.pofile(str(APP / "locale" / language / "LC_MESSAGES" / "django.po"))
    assert {entry.msgid for entry in catalog} == in_code() | in_templates()
    assert catalog.percent_translated() == 100
    assert catalog.fuzzy_entries() == catalog.obsolete_entries() == []


@pytest.mark.parametrize("language", ["es", "pt"])
def test_placeholders_are_the_same(language: str) -> None:
    """What is put into a sentence is put into each translation of it."""

    def names(text: str) -> list[str]:
        return sorted(re.findall(r"%\(\w+\)[sd]", text))

    for entry in polib.pofile(str(APP / "locale" / language / "LC_MESSAGES" / "django.po")):
        for text in entry.msgstr_plural.values() if entry.msgid_plural else [entry.msgstr]:
            assert names(text) == names(entry.msgid)


@pytest.mark.parametrize("language", ["es", "pt"])
def test_what_is_read_is_what_was_written(language: str) -> None:
    """The compiled file is that of the text beside it: ``msgfmt`` makes it anew."""
    directory = APP / "locale" / language / "LC_MESSAGES"
    written = polib.pofile(str(directory / "django.po"))
    read = polib.mofile(str(directory / "django.mo"))

    def meaning(catalog: polib.POFile | polib.MOFile) -> dict[str, object]:
        return {entry.msgid: (entry.msgstr, entry.msgstr_plural) for entry in catalog}

    assert meaning(read) == meaning(written)
    assert read.metadata["Plural-Forms"] == written.metadata["Plural-Forms"]


def test_the_sentences_are_those_of_the_rules() -> None:
    """Reasons, states and whatever else the package says of servers, word for word."""
    assert set(map(str, sentences.OF_REASONS)) == {reason.value for reason in Reason}
    others = {
        servers.PRIMARY_SERVES,
        servers.PRIMARY_IS_DOWN,
        servers.LAGS,
        servers.MAY_LAG,
        serving.STANDS_IN,
    }
    assert set(map(str, sentences.OF_STATES)) == {state.value for state in ReplicaState} | others
    alone = {reads.NOT_SHARED, reads.NO_CACHE, overview.NOBODY}
    assert set(map(str, sentences.OF_LONELINESS)) == alone


def test_the_counts_are_those_that_there_are() -> None:
    """A count that is explained is one that the package counts."""
    documented = stats.get_stats.__doc__ or ""
    for name in set(sentences.OF_COUNTS) - {"fallbacks_refused"}:
        assert name in documented or name.removeprefix("retried_") in documented


def test_remarks_are_translated_one_by_one() -> None:
    """They stand behind the sentence of a state, in any number; what is not known stays as it is."""
    state = ReplicaState.STREAMING.value
    with translation.override("es"):
        told = sentences.told(f"{state}: its replay is paused, it delays replay by 0.5 s, ever")
        promoted = sentences.told(ReplicaState.PROMOTED.value)
        nothing, count = sentences.told(""), sentences.told_of_count("what_is_new")
    assert told == (
        "un hot standby que responde: su aplicación del WAL está en pausa, "
        "retrasa la aplicación del WAL 0.5 s, ever"
    )
    assert promoted == "ya no es un standby: fue promovido, o nunca lo fue"
    assert (nothing, count) == ("", "")
