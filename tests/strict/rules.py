"""The table of rules that AWS documents and emulators do not keep.

A rule either checks a call, and refuses it as the service would (`check`), or acts: it
changes what a call brings about, as a service may do at any time (`act`).  An acting rule
gets the rest of the chain as `proceed`.  Both are registered by a decorator with a name,
a statement and the address of its documentation; `RULES` is the table, in the order in
which rules apply.

A rule that acts counts itself when it did something; a check is counted when it held.
The rules of directory buckets are kept by a server of their own (`express.py`): they have
neither function, and that server counts them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from tests.strict.call import Answer, Call
from tests.strict.world import World

Check = Callable[[Call, World], "bool | None"]  # False: the rule does not apply to this call
Proceed = Callable[[Call], Answer]
Act = Callable[[Call, World, Proceed], Answer]

DOCS = "https://docs.aws.amazon.com/"


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes
    ----------
    name
        Short, with the service in front.
    statement
        What is always true on AWS, or may happen there at any time.
    source
        Address of the documentation.
    calls
        Patterns of "service.Action", one per blank.
    check, act
        One of them; neither if `express.py` keeps the rule.
    """

    name: str
    statement: str
    source: str
    calls: tuple[str, ...]
    check: Check | None = None
    act: Act | None = None

    def concerns(self, call: Call) -> bool:
        """Return whether the rule is about such calls."""
        return any(fnmatch.fnmatchcase(call.name, pattern) for pattern in self.calls)


RULES: dict[str, Rule] = {}


def _register(made: Rule) -> None:
    assert made.name not in RULES, f"two rules are called {made.name}"
    RULES[made.name] = made


def keeps(name: str, source: str, statement: str) -> None:
    """Register a rule that `express.py` keeps."""
    _register(Rule(name, statement, DOCS + source, ()))


def checks(name: str, calls: str, source: str, statement: str) -> Callable[[Check], Check]:
    """Register a function that raises `Refusal` for a call that breaks the rule."""

    def register(check: Check) -> Check:
        _register(Rule(name, statement, DOCS + source, tuple(calls.split()), check=check))
        return check

    return register


def acts(name: str, calls: str, source: str, statement: str) -> Callable[[Act], Act]:
    """Register a function that changes what calls bring about."""

    def register(act: Act) -> Act:
        _register(Rule(name, statement, DOCS + source, tuple(calls.split()), act=act))
        return act

    return register
