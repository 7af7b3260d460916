"""What cores call must be in the C++ source of their object file, before a linker looks for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from npu_matmul.violation import Violation


def judged_symbols(
    source: Path, symbols: Iterable[str], where: str
) -> tuple[tuple[Violation, ...], tuple[str, ...]]:
    """What is wrong with the C symbols of a source; one not yet written is only noted."""
    if source.is_file():
        return tuple(_violations(source.read_text("utf-8"), symbols, where)), ()
    return (), (f"{source.name} is not there: its symbols were not checked",)


def _violations(text: str, symbols: Iterable[str], where: str) -> Iterator[Violation]:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)
    for symbol in symbols:
        if not re.search(rf"\b{symbol}\b", code):
            cure = "define it there, or name what is defined"
            yield Violation("symbols", where, f"does not define {symbol}", cure)
    if not re.search(r'extern\s+"C"', code):
        found = 'has no extern "C": the linker would look for C++ names'
        yield Violation("symbols", where, found, 'define the symbols in extern "C" { }')
