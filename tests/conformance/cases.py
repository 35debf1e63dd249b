"""Which cases of the suite run: shared by the command and the ranks, which have no package to import it from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Cases:
    """Which cases run, by patterns of their full names (module.class.method).

    Parameters
    ----------
    pattern
        Only those that it matches.
    without
        Except for those that one of these matches.
    arrays
        Kinds of arrays whose buffers are sent where a case sends one of each ("numpy", "array"), all
        if it is empty; as `--no-array` of the suite's own command.
    """

    pattern: str = "*"
    without: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()

    def cover(self, case: str) -> bool:
        """Whether a case runs."""
        return fnmatchcase(case, self.pattern) and not any(
            fnmatchcase(case, pattern) for pattern in self.without
        )

    def to_json(self) -> str:
        """Return the choice as text, from which `Cases(**json.loads(text))` rebuilds it."""
        return json.dumps(asdict(self))
