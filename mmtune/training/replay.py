"""Samples of steps that were not finite, each once more alone: forward and backward with the weights last saved.

Nothing of the run is changed. The random numbers are those of the step on its first rank, so a sample that fails by
itself fails again; one that failed only with the weights of its step, or in company, may not.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mmtune.checkpoint import store
from mmtune.collate import collate
from mmtune.data import ledger
from mmtune.data.loader import Loader, Skip
from mmtune.data.sample_order import SampleKey
from mmtune.errors import Reason, UsageError
from mmtune.training import nonfinite, setup
from mmtune.training import resume as states
from mmtune.training.distributed import Runtime


def replay(run: Path, ids: Collection[str] = (), device: str = "auto") -> tuple[int, list[nonfinite.Trial]]:
    """Try samples of a run alone.

    Args:
        ids: of these, in whatever stream; without any, all that the run's ledger names as not finite.

    Returns:
        Step of the weights, and a trial for each sample.

    Raises:
        UsageError: no run, nothing to replay, or an id that is in no stream.
        DataError: a sample that cannot be read any more.
    """
    recipe = store.read_recipe(run)
    rows = (row for row in ledger.read(run / "skipped.jsonl") if row["reason"] == str(Reason.non_finite))
    known = {(row["stream"], row["id"]): row for row in rows if not ids or row["id"] in ids}
    if not known and not ids:
        raise UsageError(
            seen=f"{run}/skipped.jsonl names no sample that was not finite",
            expected="a run with such a step, or ids",
            hint="give one with --id",
        )
    runtime = Runtime(device, recipe.run.precision)
    at = setup.build(recipe, run, runtime, resume=True)
    state = states.load(run / "state")
    if state is not None:
        wanted = store.trained_tensors(at.model, at.groups)
        everything = {name: tensor for tensors in wanted.values() for name, tensor in tensors.items()}
        store.copy_into({"state": everything}, {"state": state.weights})
        for name, holder in at.holders().items():
            if name.startswith("@") and name in state.optimizers:  # what has a say in the forward pass
                holder.load(state.optimizers[name])
    step = 0 if state is None else state.step
    found = _places(at.loader, {id for _, id in known} | set(ids))
    if missing := sorted(set(ids) - {id for _, id in found}):
        raise UsageError(
            seen=f"no stream of {run} has {', '.join(missing[:4])}", expected="ids as skipped.jsonl has them"
        )
    trials, named = [], {id for _, id in known}
    for (stream, id), key in found.items():
        row = known.get((stream, id), {})
        if not row and id in named:
            continue  # another stream's sample of the same name
        example = at.loader.prepare(stream, key, row.get("epoch", 0))
        if isinstance(example, Skip):
            raise UsageError(seen=f"{id}: {example.reason}: {example.detail}", expected="data as the run had it")
        at_step = row.get("step", min(step, at.steps - 1))
        states.seed_step(recipe.run.seed, at_step)
        at.step_callbacks.before(at_step, at.train_plan.schedule.streams(at_step))
        batch = collate([[example]], at.loader.pad, stream)
        trials.append(nonfinite.run_alone(at.model, batch, at.train_plan, runtime))
    return step, trials


def _places(loader: Loader, ids: Collection[str]) -> dict[tuple[str, str], SampleKey]:
    """(stream, id) to where the sample lies, for those that are there."""
    found = {}
    for name, stream in loader.streams.items():
        for key in stream.corpus.samples():
            if (id := stream.corpus.id(key)) in ids:
                found[name, id] = key
    return found
