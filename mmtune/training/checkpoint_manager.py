"""Saves a run, and resumes it where it was saved.

What is saved: trained weights, the state of every optimizer, the position in each stream and in the ledger, and what
the run is made of. A run is resumed only with the same recipe, data, tokenizer, base weights, prompts and versions;
each may be allowed to differ. All ranks come to the same decision, or all stop.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from mmtune import config as configs
from mmtune import disk, registry, renamed
from mmtune.addresses import without_secrets
from mmtune.checkpoint import seal, store, tensors
from mmtune.errors import CheckpointError, MmtuneError, UsageError
from mmtune.training import resume as states
from mmtune.training.async_writer import AsyncWriter
from mmtune.training.older import with_new_fields
from mmtune.training.setup import Say, Setup
from mmtune.training.train_plan import OBJECTIVE
from mmtune.training.trainer_state import TrainerState

HARMLESS = {
    "run": (
        *("workers", "save_every", "keep", "device", "out", "stop_after_minutes", "failed_save", "trackers"),
        *("out_of_memory", "activation_checkpointing"),
        *("strategy", "offload", "compile", "deadline"),
    ),
    "eval": None,
    "chat": None,
    "models": None,  # what they are is compared, not where they are
}
"""What a recipe may change between a stop and a resume without changing a weight; none stands for the whole section."""

KINDS = ("recipe", "data", "tokenizer", "base", "models", "prompts", "code", "ledger")
"""What may be allowed to differ when a run is resumed."""


def allowed(names: Collection[str]) -> frozenset[str]:
    """What was allowed to differ; `all` stands for everything. Raises UsageError for a name that means nothing."""
    if wrong := sorted(set(names) - {*KINDS, "all"}):
        raise UsageError(
            seen=f"--allow {', '.join(wrong)}", expected=f"one of {', '.join(KINDS)}, or all", hint="as: --allow data"
        )
    return frozenset(KINDS if "all" in names else names)


class CheckpointManager:
    """Saves a run and resumes it.

    Args:
        say: reports what is damaged, changed or late.
    """

    def __init__(self, setup: Setup, say: Say) -> None:
        self.setup, self.out, self.recipe, self.runtime = setup, setup.out, setup.recipe, setup.runtime
        self.model, self.groups, self.loader, self._say = setup.model, setup.groups, setup.loader, say
        self.writer = AsyncWriter(say, setup.recipe.run.failed_save)
        self._versions: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """What a state must have in common with the run that resumes from it."""
        recipe = self.recipe.model_dump(mode="json")
        for section, keys in HARMLESS.items():
            recipe[section] = {k: v for k, v in (recipe.get(section) or {}).items() if keys and k not in keys}
        recipe["schedule"]["steps"] = self.setup.steps  # settled, where the recipe counts in epochs
        # once: what is imported stays as it is, whatever becomes of its file
        self._versions = self._versions or {**store.versions(), **registry.outside(recipe)}
        return {
            "recipe": without_secrets(recipe),
            "base": {part: one["sha256"] for part, one in self.setup.base.items()},
            "models": self.setup.others.digests,
            "tokenizer": self.model.llm.tokenizer.fingerprint(),
            "data": self.loader.fingerprint(),
            "prompts": {
                name: stream.processor.template.model_dump(mode="json") for name, stream in self.loader.streams.items()
            },
            # another commit of the same version is left to its author
            "code": {name: version for name, version in self._versions.items() if name != "git"},
        }

    # ------------------------------------------------------------------------------------------------------- saving

    def save(self, trainer_state: TrainerState, last: bool = False, best: bool = False, state: bool = True) -> None:
        """Take a copy of the run as it is and write it beside the training. Every rank calls this.

        Args:
            last: no other save comes after this one, so it must not fail, whatever `run.failed_save` says.
            best: keep it as the best state, too.
            state: whether it is one to resume from, with its weights as those of the run.

        Raises what the write before it raised, on the first rank.
        """
        main, trained = self.runtime.is_main, store.trained_tensors(self.model, self.groups)
        files = {file: tensors.snapshot(held, keep=main) for file, held in trained.items()}
        moments = {name: tensors.snapshot(holder.state(), keep=main) for name, holder in self.setup.holders().items()}
        if not main:
            return
        info = {
            "facts": self.facts(),
            "positions": self.loader.positions(trainer_state.step),
            "ledger": self.loader.ledger.position(),
            "nonfinite_steps": trainer_state.nonfinite_steps,
            "recent": trainer_state.recent,
            "micro_step_parts": trainer_state.micro_step_parts,
            "validation": trainer_state.validation,
            "versions": self._versions,
        }
        weights = {name: tensor for held in files.values() for name, tensor in held.items()}
        moment = states.State(trainer_state.step, weights, moments, json.loads(json.dumps(info)))
        facts = self._card(trainer_state)

        def write() -> None:
            # the state comes last: where there is one of the last step, everything else of the run is there too
            self.loader.ledger.flush()
            if best:
                store.write_copy(self.out, self.out / "best", files, self.recipe, self.setup.base, facts)
            if state:
                store.write_weights(self.out, files, self.recipe, facts)
                states.save(self.out / "state", moment, self.recipe.run.keep)

        self.writer.start(trainer_state.step, write, last)

    def _card(self, trainer_state: TrainerState) -> dict[str, str]:
        facts = {"steps": f"{trainer_state.step} of {self.setup.steps}"}
        if trainer_state.loss is not None:
            facts["mean training loss of the last steps"] = f"{trainer_state.loss:.4f}"
        if (best := trainer_state.validation.get("best")) and best["step"]:
            facts["best state"] = f"step {best['step']}, {best['measure']} {best['value']:.6g}"
        return facts

    # ---------------------------------------------------------------------------------------------------- going on

    def restore(self, trainer_state: TrainerState, allow: Collection[str] = ()) -> None:
        """Resume from the newest whole state; without any, the run begins with its first step. Every rank calls this.

        Args:
            trainer_state: of a run that took no step yet; takes up what the saved one counted.
            allow: kinds of differences to accept, see `KINDS`.

        Raises:
            CheckpointError: no whole state; something differs that was not allowed, listed; on every rank.
        """
        state = self._load()
        if state is None:
            self._say(f"no saved state in {self.out}: starting with the first step")
            return
        before = state.info["facts"]
        now, stored = self.facts(), without_secrets(renamed.fields(before["recipe"]))
        before.setdefault("models", {})
        before["recipe"] = with_new_fields(stored, now["recipe"], self.recipe)
        prompts = before.get("prompts")
        if isinstance(prompts, dict):
            before["prompts"] = {name: renamed.fields(template) for name, template in prompts.items()}
        changed = states.differences(before, now)
        changed += [f"ledger: {fault}" for fault in self.loader.ledger.faults(state.info["ledger"])]
        refused = [line for line in changed if _kind(line) not in allow]
        self._together(_refusal(refused, changed) if refused else None)
        for line in changed:
            self._say(f"changed since the state was saved, as allowed: {line}")
        self._take(state)
        if self.runtime.is_main and (changed or self._lost()):
            # only now: a recipe that the state does not fit leaves the folder as it was
            store.write_recipe(self.out, self.recipe, self.setup.base)
        if self.runtime.is_main:
            states.put_aside(self.out / "state", state.step)
        self._say(f"going on after step {state.step}")
        trainer_state.step, trainer_state.nonfinite_steps = state.step, state.info["nonfinite_steps"]
        trainer_state.micro_step_parts = state.info["micro_step_parts"]
        trainer_state.recent = [(loss, count) for loss, count in state.info["recent"]]
        trainer_state.validation = state.info.get("validation", {})

    def _lost(self) -> bool:
        """Whether recipe.yaml or base.yaml is missing or cannot be read; reports it."""
        for file in ("recipe.yaml", "base.yaml"):
            try:
                configs.read(str(self.out / file), [])
            except (MmtuneError, OSError) as error:
                why = error.seen if isinstance(error, MmtuneError) else str(error)
                self._say(f"warning: {why}; it is written again")
                return True
        return False

    def mend(self, trainer_state: TrainerState) -> None:
        """Write the weights of a run that is done once more, where they are damaged."""
        if self.runtime.is_main and (faults := seal.faults(self.out / "weights")):
            self._say(f"weights are damaged and written again: {'; '.join(faults)}")
            files = store.trained_tensors(self.model, self.groups)
            store.write_weights(self.out, files, self.recipe, self._card(trainer_state))

    def _load(self) -> states.State | None:
        """The state that the first rank finds, on every rank."""
        folder, state, error = self.out / "state", None, None
        if self.runtime.is_main:
            try:
                for part in (self.out, self.out / "best"):
                    disk.clear_drafts(part)
                states.recover(folder)
                if (self.out / "weights").parent.is_dir():
                    seal.recover(self.out / "weights")
                state = states.load(folder, self._say)
                if state is not None:
                    states.check(state.info)
            except (MmtuneError, OSError) as caught:
                error = caught
        self.runtime.barrier()  # reading all of it takes as long as it takes
        self._together(error)
        step = int(self.runtime.all_reduce([state.step if state else 0])[0])
        if step and not self.runtime.is_main:
            try:
                state = states.load(folder, self._say, step)
            except (MmtuneError, OSError) as caught:
                error = caught
        self._together(error)
        return state

    def _take(self, state: states.State) -> None:
        files = store.trained_tensors(self.model, self.groups)
        everything = {name: tensor for held in files.values() for name, tensor in held.items()}
        store.copy_into({"state": everything}, {"state": state.weights})
        holders = self.setup.holders()
        differing = sorted(set(holders) ^ set(state.optimizers))
        if not all(name.startswith(OBJECTIVE) for name in differing):
            raise CheckpointError(
                seen=f"optimizer states of {', '.join(sorted(state.optimizers)) or 'nothing'}",
                expected=f"those of {', '.join(sorted(holders)) or 'nothing'}, which this recipe trains",
                hint="keep the names of the groups, or begin a new run with these weights: run.init_from=FOLDER",
            )
        for name in differing:  # of a changed objective, which was allowed
            said = "begins as in a new run" if name in holders else "is not used: its objective keeps none"
            self._say(f"the state of {name} {said}")
        for name in holders.keys() & state.optimizers.keys():
            holders[name].load(state.optimizers[name])
        self.loader.restore(state.info["positions"])
        self.loader.ledger.restore(state.info["ledger"])

    def _together(self, error: Exception | None) -> None:
        """Raise on every rank when one of them has something to raise."""
        if self.runtime.any(error is not None):
            raise error or CheckpointError(
                seen="another rank cannot go on with this run", expected="the same on every rank", hint="see its words"
            )


def _kind(line: str) -> str:
    return line.partition(":")[0].partition(".")[0]


def _refusal(refused: list[str], changed: list[str]) -> CheckpointError:
    # with what is allowed already, so that the line can be taken as it is
    flags = " ".join(f"--allow {kind}" for kind in KINDS if kind in {_kind(line) for line in changed})
    return CheckpointError(
        seen="what this run is made of has changed since it was saved:\n  " + "\n  ".join(refused),
        expected="the same recipe, data, tokenizer, base weights, prompts and versions",
        hint=f"undo the changes, start a new folder, or allow them with {flags}",
    )
