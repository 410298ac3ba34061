"""Frozen means frozen: what does not train has the same bytes after a run as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.checkpoint import store, tensors
from mmtune.errors import CheckpointError
from mmtune.training.setup import Setup


class FrozenCheck:
    """Compares the frozen parts of a run with what they were when this was made."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        base = setup.base if not setup.settled else self._base_now()
        self._digests = {**_digests(base), **_named(setup.others.digests)}
        self._marks = self._marks_now()

    def quick(self) -> None:
        """A sum over each part, at every save. Raises CheckpointError for a part that moved."""
        self._compare(self._marks, self._marks_now())

    def whole(self) -> None:
        """Digests, at the end. Raises CheckpointError for a part that moved."""
        with self._setup.runtime.without_deadline("looking at frozen weights"):
            now = {**_digests(self._base_now()), **_named(self._setup.others.digests_now())}
        self._compare(self._digests, now)

    def _base_now(self) -> dict[str, dict[str, Any]]:
        return store.base_of(self._setup.model, self._setup.recipe, self._setup.groups)

    def _marks_now(self) -> dict[str, int]:
        others = self._setup.others.models.items()
        marks = store.marks_of(self._setup.model, self._setup.groups)
        return {**marks, **_named({name: tensors.mark(model.state_dict()) for name, model in others})}

    @staticmethod
    def _compare(before: Mapping[str, object], now: Mapping[str, object]) -> None:
        if moved := [part for part in before if now.get(part) != before[part]]:
            raise CheckpointError(
                seen=f"frozen weights of {', '.join(moved)} changed while training",
                expected="frozen parts equal to the bit",
                hint="this is a fault of the program; the last saved state is from before",
            )


def _named(others: Mapping[str, Any]) -> dict[str, Any]:
    return {f"models.{name}": value for name, value in others.items()}


def _digests(base: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {part: entry["sha256"] for part, entry in base.items()}
