"""Frozen means frozen: encoders and language model have the same bytes before, after, and through kill and resume.

And a frozen weight that is moved on purpose stops the run before anything of it is saved; two that are swapped, which
the quick look at each save cannot see, stop it before it is called finished.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmtune.checkpoint import store
from mmtune.training import loop, stepper
from mmtune.training import resume as states

from . import _fork
from ._base import Guard, Verdict
from ._stage import STEPS, clear, fresh, recipe_file, train

RECIPES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "one group": ("groups.speech.streams=[words,pictures]", "groups.sight.streams=[words,pictures]"),
    "half precision": ("run.precision=bf16",),
    "other rates": ("groups.sight.weight_decay=0.1", "groups.speech.lr=0.1"),
}


def prove(short: bool) -> Verdict:
    verdict = Verdict("frozen", "frozen parts unmoved, or the move noticed before a save")
    for name, overrides in list(RECIPES.items())[: 1 if short else None]:
        _unmoved(verdict, name, overrides)
    for after in (2,) if short else (1, 2, 4, 5, STEPS):
        for part in ("branches.sight.encoder", "llm", "models.teacher"):
            _moved(verdict, part, after)
    for after in (3,) if short else (1, 3, STEPS):
        _moved(verdict, "llm", after, swapped=True)
    return verdict


def _sums(seen: dict[str, Any]) -> Callable[[], None]:
    """A patch that takes digests of everything frozen when a run begins and when it ends, apart from the run's own."""

    def patch() -> None:
        real = loop.Trainer.train

        def go(self: loop.Trainer, *args: Any) -> Any:
            trained = {id(p) for named in self.setup.groups.values() for _, p in named}
            state = self.setup.model.state_dict(keep_vars=True)
            for name, model in self.setup.others.models.items():
                state |= {f"models.{name}.{n}": t for n, t in model.state_dict(keep_vars=True).items()}
            frozen = {n: t for n, t in state.items() if id(t) not in trained}
            seen["frozen"] = len(frozen)
            seen["before"] = {n: store.digest({n: t}) for n, t in frozen.items()}
            moving = store.digest({n: t for n, t in state.items() if id(t) in trained})
            try:
                return real(self, *args)
            finally:
                seen["after"] = {n: store.digest({n: t}) for n, t in frozen.items()}
                seen["trained"] = moving != store.digest({n: t for n, t in state.items() if id(t) in trained})

        loop.Trainer.train = go

    return patch


def _unmoved(verdict: Verdict, name: str, overrides: tuple[str, ...]) -> None:
    """Killed, taken up, finished: digests of each frozen tensor at each start and end."""
    recipe, out = recipe_file(), fresh("frozen")

    def work() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        return {**train(recipe, out, *overrides, patch=_sums(seen)), **seen}

    _fork.run(lambda: train(recipe, out, *overrides, patch=_kill_after(5)))
    ended = _fork.run(work)
    told = ended.value or {}
    verdict.need(
        bool(told.get("trained")) and told.get("frozen", 0) > 20, f"{name}: nothing trained: {ended.said[-400:]}"
    )
    before, after = told.get("before", {}), told.get("after", {})
    first = _fork.run(lambda: _fresh_sums(recipe, overrides)).value or {}
    for tensor in before:
        same = before[tensor] == after.get(tensor) == first.get(tensor)
        verdict.check(same, f"{name}: {tensor} moved")
    clear(out)


def _fresh_sums(recipe: Path, overrides: tuple[str, ...]) -> dict[str, str]:
    """Digests of a model that never trained."""
    seen: dict[str, Any] = {}
    train(recipe, fresh("first"), *overrides, "schedule.steps=2", patch=_sums(seen))
    return seen["before"]


def _kill_after(steps: int) -> Callable[[], None]:
    from ._stage import signalled

    return signalled(steps, signal.SIGKILL)


def _moved(verdict: Verdict, part: str, after: int, swapped: bool = False) -> None:
    """Add a little to a frozen weight in the course of a step; or swap two, which only a digest can see, at the end."""
    recipe, out = recipe_file(), fresh("moved")

    def patch() -> None:
        import torch

        real, done = stepper.Stepper.attempt, 0

        def attempt(self: stepper.Stepper, *args: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            if done == after:
                bases, _ = store._split(self.setup.model, self.setup.groups)
                others = self.setup.others.models.items()
                bases |= {f"models.{name}": model.state_dict() for name, model in others}
                with torch.no_grad():
                    held = next(t for t in bases[part].values() if t.is_floating_point() and t.ndim > 1).view(-1)
                    if swapped:
                        held[:2] = held[:2].flip(0).clone()
                    else:
                        held[0] += 1e-3
                print("moved on purpose")
            return real(self, *args, **more)

        stepper.Stepper.attempt = attempt

    ended = _fork.run(lambda: train(recipe, out, patch=patch))
    where = f"{part}, {'swapped' if swapped else 'moved'} in step {after}"
    verdict.need("moved on purpose" in ended.said, f"{where}: did not fire: {ended.said[-300:]}")
    named = f"frozen weights of {part} changed" in ended.said
    saved = states.load(out / "state", lambda text: None)
    clean = saved is None or saved.step < (STEPS if swapped else after)
    verdict.check(
        ended.code != 0 and named and clean,
        f"{where}: code {ended.code}, named {named}, saved {saved and saved.step}",
    )
    clear(out)


_LOOP = "mmtune.training.loop"

GUARDS = (
    Guard(
        "frozen parts are looked at before a save",
        _LOOP,
        "Trainer._save",
        "        self.frozen.quick()\n",
        "        pass\n",
    ),
    Guard(
        "digests of frozen parts at the end",
        _LOOP,
        "Trainer._finish",
        "            self.frozen.whole()\n",
        "            pass\n",
    ),
)
