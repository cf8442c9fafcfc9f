"""What a page shows, as lines that two runs of the same steps have in common."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"

CHANGING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"\b\d+\s(second|minute)s?(,\s\d+\s(second|minute)s?)?(\sago)?"), "AGE"),
    (re.compile(r"\bjust now\b", re.IGNORECASE), "AGE"),
    (re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2})?(\.\d+)?(Z|[+-]\d{2}:\d{2})?"), "TIME"),
    (
        re.compile(
            rf"\b(\d{{1,2}} )?({_MONTHS})[a-z]*\.? \d{{1,2}}(, \d{{4}})?(,? at)?,? (noon|midnight|\d[\d:]*\s?[ap]\.?m\.?)"
        ),
        "TIME",
    ),
    (re.compile(r"\b\d{1,2}(:\d{2}){1,2}(\s?[ap]\.?m\.?)?"), "TIME"),
    # On the hour, as Django's dates have it.
    (re.compile(r"\b\d{1,2} [ap]\.m\."), "TIME"),
    (re.compile(r"\b(noon|midnight)\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{32,}\b"), "DIGEST"),
    # Wagtail takes the name from one of a set of models, in whatever order the process keeps them.
    (re.compile(r"\b(page|model) log entries"), "log entries"),
    (re.compile(r"(?<=/wishlists/)(?!create/)\w{6}(?=/)"), "KEY"),
    (re.compile(r"[\w./+]+\*{6,}"), "SECRET"),
]
"""What differs from run to run whatever the database: each pattern, and what stands for it."""

UNSEEN = ["script", "style", "template", "svg"]
SECRETS = {"csrfmiddlewaretoken"}


def shown(html: str) -> list[str]:
    """Return what a reader sees: texts, links, and what stands in forms.

    Args:
        html: the page.
    """
    soup = BeautifulSoup(html, "html.parser")
    lines = [f"{kind} {value}" for kind, value in _controls(soup)]
    for element in soup(UNSEEN):
        element.decompose()
    lines += [f"link {link['href']}" for link in soup.find_all("a", href=True)]
    lines += [" ".join(text.split()) for text in soup.stripped_strings]
    return [without_changes(line) for line in lines]


def _controls(soup: BeautifulSoup) -> list[tuple[str, str]]:
    values = []
    for control in soup.find_all(["input", "textarea", "option"]):
        if control.get("name") in SECRETS or control.get("type") in {"submit", "button"}:
            continue
        if control.name == "option" and control.has_attr("selected"):
            values.append(("selected", control.get_text(strip=True)))
        elif control.name != "option":
            values.append((f"field {control.get('name', '')}:", _value(control)))
    return values


def _value(control: Tag) -> str:
    if control.get("type") in {"checkbox", "radio"}:
        return f"{control.get('value', 'on')} {'on' if control.has_attr('checked') else 'off'}"
    return str(control.get("value", "")) or control.get_text(strip=True)


def without_changes(line: str) -> str:
    """Return a line, or an address, without what differs from run to run."""
    for pattern, stands_for in CHANGING:
        line = pattern.sub(stands_for, line)
    return line
