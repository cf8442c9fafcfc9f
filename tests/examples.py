"""The examples of the documents, run as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

DOCS = Path(__file__).resolve().parent.parent / "docs"


def example(document: str, file: str) -> str:
    """Return the code of a document whose first line names that file, at the lines where it stands."""
    lines = (DOCS / document).read_text().splitlines()
    begin = lines.index(f"    # {file}")
    end = next(
        number
        for number, line in enumerate([*lines, "end"])
        if number > begin and line and not line.startswith("    ")
    )
    return "\n" * begin + dedent("\n".join(lines[begin:end]))


def load_example(document: str, file: str) -> ModuleType:
    """Return such code as the module that the document says it is; later examples may import it."""
    name = file.removesuffix(".py").replace("/", ".")
    package = name.rpartition(".")[0]
    sys.modules.setdefault(package, ModuleType(package)).__path__ = []
    # Libraries look there for the names that annotations use.
    module = sys.modules[name] = ModuleType(name)
    code = compile(example(document, file), str(DOCS / document), "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - it is the project's own
    return module


def write_examples(document: str, directory: Path) -> None:
    """Write the files that the examples of a document are: each begins with a line that names one."""
    text = (DOCS / document).read_text()
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE):
        parts = re.split(r"^# (\S+\.py)\n", dedent(block), flags=re.MULTILINE)
        for name, code in zip(parts[1::2], parts[2::2], strict=True):
            file = directory / name
            file.parent.mkdir(exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(code)
