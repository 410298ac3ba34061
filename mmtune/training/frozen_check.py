"""Frozen means frozen: what does not train has the same bytes after a run as before."""

from __future__ import annotations

from collections.abc import Mapping

from mmtune.checkpoint import store
from mmtune.errors import CheckpointError
from mmtune.training.setup import Setup


class FrozenCheck:
    """Compares the frozen parts of a run with what they were when this was made."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        # settling types changed what the digests of `base` were taken of
        self._digests = _digests(setup.base) if not setup.runtime.settled else self._digests_now()
        self._marks = store.marks_of(setup.model, setup.groups)

    def quick(self) -> None:
        """A sum over each part, at every save. Raises CheckpointError for a part that moved."""
        self._compare(self._marks, store.marks_of(self._setup.model, self._setup.groups))

    def whole(self) -> None:
        """Digests, at the end. Raises CheckpointError for a part that moved."""
        with self._setup.runtime.without_deadline("looking at frozen weights"):
            now = self._digests_now()
        self._compare(self._digests, now)

    def _digests_now(self) -> dict[str, str]:
        return _digests(store.base_of(self._setup.model, self._setup.recipe, self._setup.groups))

    @staticmethod
    def _compare(before: Mapping[str, object], now: Mapping[str, object]) -> None:
        if moved := [part for part in before if now.get(part) != before[part]]:
            raise CheckpointError(
                seen=f"frozen weights of {', '.join(moved)} changed while training",
                expected="frozen parts equal to the bit",
                hint="this is a fault of the program; the last saved state is from before",
            )


def _digests(base: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {part: entry["sha256"] for part, entry in base.items()}
