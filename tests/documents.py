"""The blocks of code in the documents, as Markdown has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code.

    Args:
        page: the document.
        line: where it begins, counted from 1.
        language: what the fence says; empty for an indented block.
        text: its lines.
        note: the HTML comment in front of it, which tells why it is not run.
    """

    page: Path
    line: int
    language: str
    text: str
    note: str = ""

    @property
    def name(self) -> str:
        """Where to find it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The file that its first line names, or nothing."""
        found = re.match(r"(?:#|<!--) (\S+\.\w+)(?: -->)?\n", self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a document, in their order."""
    found: list[Block] = []
    note = ""
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type == "html_block":
            note = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
        elif token.type in {"fence", "code_block"}:
            assert token.map is not None
            line = token.map[0] + 1 + (token.type == "fence")
            found.append(Block(page, line, token.info.strip(), token.content, note))
            note = ""
        else:
            note = ""
    return found


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that it prints there."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *output = part.rstrip("\n").split("\n")
        while command.count('"') % 2 and output:
            command += f"\n{output.pop(0)}"  # a quotation goes on in the next line
        found.append((command, output))
    return found
