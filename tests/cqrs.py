"""What tests of commands and queries do in them."""

from __future__ import annotations

from typing import Any

from testproject.notes.models import Note


def change(text: str = "second") -> Any:
    """Give the note another title, and return the one that is read then."""
    Note.objects.update(title=text)
    return Note.objects.get().title


def by_text(cursor: Any, pk: int) -> Any:
    """Call the function in a statement."""
    cursor.execute(f"SELECT notes_touch({pk})")
    return cursor.fetchall()
