"""What cores call must be in the C++ source of their object file, before a linker looks for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from npu_matmul.violation import Violation

NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\])'|\"(?:\\.|[^\"\\\n])*\"", re.S)
ARGUMENTS = r"\s*\((?:[^()]|\([^()]*\))*\)"


def judged_symbols(
    source: Path, symbols: Iterable[str], where: str
) -> tuple[tuple[Violation, ...], tuple[str, ...]]:
    """What is wrong with the C symbols of a source, and what cannot be told: one not yet written,
    and names that macros may make."""
    if not source.is_file():
        return (), (f"{source.name} is not there: its symbols were not checked",)
    code = NOT_CODE.sub(
        lambda found: found[0] if found[0] == '"C"' else " ", source.read_text("utf-8")
    )
    violations, notes = [], []
    for symbol in symbols:
        if re.search(rf"\b{symbol}{ARGUMENTS}[\w\s]*\{{", code):
            continue
        if "##" in code or re.search(rf"\b{symbol}\b(?!\s*\()", code):
            notes.append(f"{source.name} may define {symbol} by a macro: it was not checked")
            continue
        cure = "define it there, or name what is defined"
        violations.append(Violation("symbols", where, f"does not define {symbol}", cure))
    if not re.search(r'extern\s+"C"', code):
        found = 'has no extern "C": the linker would look for C++ names'
        cure = 'define the symbols in extern "C" { }'
        violations.append(Violation("symbols", where, found, cure))
    return tuple(violations), tuple(notes)
