"""What a proof gives back, and what a guard is.

A proof is a file `tools/proofs/NAME.py` with `def prove(short: bool) -> Verdict`. It plants its faults itself and
counts as broken when one of them did not fire. `GUARDS` of the file, where it has some, are the places in the program
without which this proof has to fail: `tools/prove mutants` takes them away one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Guard:
    """A place in the program that keeps a promise, and how it is taken away.

    In the source of `function` the text `old` stands once; the mutant has `new` there.
    """

    name: str
    module: str
    """As mmtune.training.loop."""
    function: str
    """Qualified name in the module, as CheckpointManager.save."""
    old: str
    new: str


class FirstBreak(Exception):
    """A proof is broken, and no more was asked of it."""


@dataclass
class Verdict:
    """How a proof went."""

    impatient: ClassVar[bool] = False
    """Whether the first thing that does not hold ends the proof, with FirstBreak."""

    name: str
    what: str
    """What is counted, as "kills that ended in the same run"."""
    held: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)
    """Further counts, for the same line."""
    broken: list[str] = field(default_factory=list)
    """What did not hold, in words."""

    def check(self, holds: bool, otherwise: str) -> bool:
        """Count one case."""
        self.total += 1
        self.held += bool(holds)
        self.need(holds, otherwise)
        return bool(holds)

    def need(self, fired: bool, otherwise: str) -> None:
        """Not a case, but without it the cases mean nothing: that a fault fired, that there was something to see."""
        if not fired:
            self.broken.append(otherwise)
            if self.impatient:
                raise FirstBreak(otherwise)

    @property
    def holds(self) -> bool:
        return self.total > 0 and self.held == self.total and not self.broken

    def line(self) -> str:
        state = "holds " if self.holds else "BROKEN"
        return "  ".join([f"{self.name:8} {state} {self.held}/{self.total} {self.what}", *self.notes])
