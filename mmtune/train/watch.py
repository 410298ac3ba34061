"""The first step of every stream is looked at: its groups have to get a gradient, and no other group may move. A
gradient that is zero is waited for, a few steps.

A mistake in the groups shows in no loss: a connector that nobody reaches, or one that another stream drags along, only
makes the model a little worse. So it is looked for where it costs nothing, once for each stream of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from mmtune.checkpoint.store import digest
from mmtune.errors import ModelError
from mmtune.train.step import Outcome
from mmtune.train.team import Team

SHOWN = 6
"""Names listed of each mistake."""
PATIENCE = 5
"""Steps in which the gradient of a group may be zero before that is a mistake."""


class Watch:
    """Looks at the first step of each stream. A step in which nothing moved does not count."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._unseen = set(team.owners)
        self._mute = {name for names in team.owners.values() for name in names}
        """Groups that no gradient has reached yet."""
        self._zeros: Counter[str] = Counter()
        self._before: dict[str, str] = {}

    def wants(self, streams: Collection[str]) -> bool:
        """Whether a step of these streams is to be looked at."""
        return bool(self._unseen.intersection(streams) or self._mute.intersection(self._team.moving(streams)))

    def before(self, streams: Collection[str]) -> None:
        """Remember what the step must not touch."""
        self._before = self._still(streams) if self._unseen.intersection(streams) else {}

    def after(self, outcome: Outcome, streams: Sequence[str], media: Collection[str]) -> None:
        """Look at what the step did.

        Args:
            outcome: of a step that was asked which parameters stayed silent.
            media: branches that had an item in it, on any rank.

        Raises:
            ModelError: a group of these streams got no gradient at all, or a tensor of another group moved; by name. A
                group of connectors or fusion alone is waited for until a step has media for it, and one whose gradient
                is zero for `PATIENCE` steps: behind a gate or a factor that begins at zero it is, at first.
        """
        if not outcome.updated:
            return
        named = {name: [full for full, _ in self._team.optimizers[name].named] for name in self._team.moving(streams)}
        mute = [
            name
            for name, names in named.items()
            if name in self._mute and len(outcome.silent.get(name, ())) == len(names)
        ]
        lacking = [name for name in mute if not _waits(named[name], media)]
        self._zeros.update(lacking)
        wrong = [
            f"no gradient reached group {name}: {_some(named[name])}"
            for name in lacking
            if name in outcome.unreached or self._zeros[name] >= PATIENCE
        ]
        self._mute -= set(named) - set(mute)
        if self._unseen.intersection(streams):
            now = self._still(streams)
            moved = [name for name in self._before if now.get(name) != self._before[name]]
            moved += [name for name in now if name not in self._before]
            if moved:
                wrong.append(f"moved, although {' and '.join(streams)} train it not: {_some(moved)}")
        if wrong:
            times = max((self._zeros[name] for name in lacking), default=1)
            first = "the first step" if times == 1 else f"the first {times} steps"
            raise ModelError(
                seen=f"{first} of {' and '.join(streams)}:\n  " + "\n  ".join(wrong),
                expected="a gradient for every group of a stream, and no change anywhere else",
                hint="mmtune show RECIPE --groups says who trains what; a group that nothing reaches is to be left out",
            )
        self._unseen -= set(streams)

    def _still(self, streams: Collection[str]) -> dict[str, str]:
        """Checksum of every weight and every optimizer state of the groups that these streams do not train."""
        others = [name for name in self._team.optimizers if name not in self._team.moving(streams)]
        sums = {}
        for group in others:
            optimizer = self._team.optimizers[group]
            for name, tensor in [*optimizer.named, *optimizer.state().items()]:
                tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                sums[f"{name} ({group})"] = digest({name: tensor})
        return sums


def _waits(names: Sequence[str], media: Collection[str]) -> bool:
    """Whether all of these belong to the way of media into the model, and no such medium came."""
    ways = {name.split(".")[1] if name.startswith("branches.") else "" for name in names if not name.startswith("llm.")}
    if any(name.startswith("llm.") for name in names):
        return False
    return not media if "" in ways else not ways.intersection(media)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
