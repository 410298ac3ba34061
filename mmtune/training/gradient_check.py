"""The first step of every stream is looked at: its groups have to get a gradient, and no other group may move. A
gradient that is zero is waited for, a few steps, which begin when every other group had its turn: it may be one of them
that opens the way. Media that are rare are waited for as long as the data may bring some.

No loss shows a mistake in the groups: a connector that no gradient reaches, or one that another stream changes, only
makes the model a little worse. So the first step of each stream is checked, which costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from mmtune.checkpoint.store import digest
from mmtune.errors import ModelError
from mmtune.training.step import Outcome
from mmtune.training.train_plan import TrainPlan

SHOWN = 6
"""Names listed of each mistake."""
PATIENCE = 5
"""Steps in which the gradient of a group may be zero before that is a mistake."""


HasMedia = Callable[[str, Collection[str]], bool | None]
"""Whether the data of a stream has an item for one of these branches (none named: for any); none: not known."""


class GradientCheck:
    """Looks at the first step of each stream. A step in which nothing moved does not count.

    Args:
        has_media: asked once for each stream of a group that got no media in its first steps.
    """

    def __init__(self, train_plan: TrainPlan, has_media: HasMedia = lambda stream, branches: None) -> None:
        self._train_plan, self._has_media = train_plan, has_media
        self._waited: Counter[str] = Counter()
        """Steps in which a group had no media."""
        self._found: dict[str, bool] = {}
        """Whether media for a group may come, once that was asked."""
        self._unseen = set(train_plan.groups_by_stream)
        self._without_grad = {name for names in train_plan.groups_by_stream.values() for name in names}
        """Groups that no gradient has reached yet."""
        self._zeros: Counter[str] = Counter()
        """Steps in which the gradient of a group was zero, though no other group was still to come."""
        self._closed: set[str] = set()
        """Groups whose gradient was zero so far, every time that one could come."""
        self._before: dict[str, str] = {}

    def is_due(self, streams: Collection[str]) -> bool:
        """Whether a step of these streams is to be looked at."""
        return bool(
            self._unseen.intersection(streams)
            or self._without_grad.intersection(self._train_plan.trained_groups(streams))
        )

    def before(self, streams: Collection[str]) -> None:
        """Remember what the step must not touch."""
        self._before = self._digests(streams) if self._unseen.intersection(streams) else {}

    def resume(self) -> None:
        """Resume a run: groups whose optimizer has seen a gradient need not show one again."""
        for name, optimizer in self._train_plan.optimizers.items():
            moments = (tensor for key, tensor in optimizer.state().items() if not key.endswith("/step"))
            if any(bool(tensor.any()) for tensor in moments):
                self._without_grad.discard(name)

    def after(
        self,
        outcome: Outcome,
        streams: Sequence[str],
        media: Mapping[str, Collection[str]],
        passed: Collection[str] = (),
    ) -> None:
        """Look at what the step did.

        Args:
            outcome: of a step that was asked which parameters got no gradient.
            media: stream to the branches that had an item of it in this step, on any rank.
            passed: streams whose data was gone through once.

        Raises:
            ModelError: a group of these streams got no gradient at all, or a tensor of another group moved; by name. A
                group of connectors or fusion alone is waited for until a step has media for it, as long as the data of
                one of its streams may bring some; and one whose gradient is zero for `PATIENCE` steps: after a gate or
                a factor that begins at zero it is, at first, and as long as the group of that gate had no step.
        """
        if not outcome.updated:
            return
        named = {
            name: [full for full, _ in self._train_plan.optimizers[name].named]
            for name in self._train_plan.trained_groups(streams)
        }
        without_grad = [
            name
            for name, names in named.items()
            if name in self._without_grad and len(outcome.zero_grad_params.get(name, ())) == len(names)
        ]
        lacking = [name for name in without_grad if not _waits(named[name], self._came(name, media))]
        self._without_grad -= set(named) - set(without_grad)
        self._closed.update(lacking)
        self._zeros.update(name for name in lacking if self._without_grad <= self._closed)
        wrong = [
            f"no gradient reached group {name}: {_some(named[name])}"
            for name in lacking
            if name in outcome.unused_groups or self._zeros[name] >= PATIENCE
        ]
        self._waited.update(set(without_grad) - set(lacking))
        wrong += [
            self._never_reached(name)
            for name in without_grad
            if name not in lacking and not self._may_get_media(name, passed)
        ]
        if self._unseen.intersection(streams):
            now = self._digests(streams)
            moved = [name for name in self._before if now.get(name) != self._before[name]]
            moved += [name for name in now if name not in self._before]
            if moved:
                wrong.append(f"moved, although {' and '.join(streams)} train it not: {_some(moved)}")
        if wrong:
            times = max([1, *(self._zeros[name] + self._waited[name] for name in without_grad)])
            first = "the first step" if times == 1 else f"the first {times} steps"
            raise _refusal(f"{first} of {' and '.join(streams)}", wrong)
        self._unseen -= set(streams)

    def end(self) -> list[str]:
        """Groups that learned nothing by the time the last step is done, in words.

        Raises ModelError where the data has none for them: then nothing of the group could be learned.
        """
        waiting = [name for name in self._train_plan.optimizers if name in self._without_grad and self._waited[name]]
        if hopeless := [self._never_reached(name) for name in waiting if not self._asked(name)]:
            raise _refusal("the whole run", hopeless)
        waited, zero = "no gradient reached it, for its media came in no step", "its gradient was zero each time"
        return [
            f"warning: group {name} learned nothing: {waited if name in waiting else zero}"
            for name in self._train_plan.optimizers
            if name in waiting or name in self._without_grad & self._closed
        ]

    def _came(self, name: str, media: Mapping[str, Collection[str]]) -> set[str]:
        """Branches that had an item of a stream that trains a group."""
        return {branch for stream in self._streams(name) for branch in media.get(stream, ())}

    def _may_get_media(self, name: str, passed: Collection[str]) -> bool:
        """Whether a group may yet get the media that it waits for."""
        if self._waited[name] < PATIENCE:
            return True
        return self._asked(name) and not set(self._streams(name)) <= set(passed)

    def _asked(self, name: str) -> bool:
        """Whether the data of a group's streams may bring media for it; looked up once."""
        if name not in self._found:
            branches = _ways([full for full, _ in self._train_plan.optimizers[name].named])
            self._found[name] = any(self._has_media(stream, branches) is not False for stream in self._streams(name))
        return self._found[name]

    def _streams(self, name: str) -> list[str]:
        return [stream for stream, names in self._train_plan.groups_by_stream.items() if name in names]

    def _never_reached(self, name: str) -> str:
        names = [full for full, _ in self._train_plan.optimizers[name].named]
        ways = _ways(names)
        kinds = f"branch {' or '.join(sorted(ways))}" if ways else "any branch"
        return (
            f"no gradient reached group {name}, and none can: the data of {' and '.join(self._streams(name))} has "
            f"nothing for {kinds}: {_some(names)}"
        )

    def _digests(self, streams: Collection[str]) -> dict[str, str]:
        """Checksum of every weight and every optimizer state of the groups that these streams do not train."""
        others = [name for name in self._train_plan.optimizers if name not in self._train_plan.trained_groups(streams)]
        sums = {}
        for group in others:
            optimizer = self._train_plan.optimizers[group]
            for name, tensor in [*optimizer.named, *optimizer.state().items()]:
                tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                sums[f"{name} ({group})"] = digest({name: tensor})
        return sums


def _refusal(when: str, wrong: Sequence[str]) -> ModelError:
    return ModelError(
        seen=f"{when}:\n  " + "\n  ".join(wrong),
        expected="a gradient for every group of a stream, and no change anywhere else",
        hint="mmtune show RECIPE --groups says who trains what; a group that nothing reaches is to be left out",
    )


def _waits(names: Sequence[str], media: set[str]) -> bool:
    """Whether all of these belong to the way of media into the model, and no such medium came."""
    if any(name.startswith("llm.") for name in names):
        return False
    ways = _ways(names)
    return not ways.intersection(media) if ways else not media


def _ways(names: Sequence[str]) -> set[str]:
    """Branches of parameters that are on the way of media into the model; None where any branch's media pass them."""
    ways = {name.split(".")[1] if name.startswith("branches.") else "" for name in names if not name.startswith("llm.")}
    return set() if "" in ways else ways


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
