"""The cases of the suite that cannot hold here, as docs/conformance.md names them, each with its reason.

A line of that page that begins `- `case`: reason` is such a name; `case` may end in `*`. `(np 1)` after the name limits it.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "conformance.md"
_LINE = re.compile(r"^- `(test_[^`]+)`(?: \(np (\d+(?:, \d+)*)\))?: (\S.*)$")


@dataclass
class Listed:
    """One line of the page. sizes: the numbers of ranks it speaks of, none for all."""

    pattern: str
    sizes: frozenset[int]
    reason: str
    failed: int = field(default=0, compare=False)
    ran: int = field(default=0, compare=False)

    def covers(self, case: str, size: int) -> bool:
        """Whether it names this case on that many ranks."""
        return self.at(size) and fnmatch.fnmatchcase(case, self.pattern)

    def at(self, size: int) -> bool:
        """Whether it speaks of that many ranks."""
        return not self.sizes or size in self.sizes


def read(page: Path = PAGE) -> list[Listed]:
    """Every line of the page that names cases."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if match := _LINE.match(line):
            pattern, sizes, reason = match.groups()
            found.append(
                Listed(
                    pattern,
                    frozenset(map(int, sizes.split(", "))) if sizes else frozenset(),
                    reason,
                )
            )
    return found
