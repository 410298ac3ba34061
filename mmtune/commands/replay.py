"""`mmtune replay`: runs the samples of non-finite steps again, one by one."""

from __future__ import annotations

from pathlib import Path


def run(run: Path, ids: list[str], device: str, allow_remote: bool = False) -> None:
    """Print the outcome of each sample. Raises UsageError and DataError."""
    from mmtune import paths
    from mmtune.checkpoint import store
    from mmtune.training import nonfinite
    from mmtune.training.replay import replay

    if not allow_remote:
        paths.refuse_unasked(store.read_recipe(run).model_dump(mode="json"))
    step, trials = replay(run, ids, device)
    bad = sum(not trial.finite for trial in trials)
    print("\n".join(nonfinite.report(trials)))
    print(f"{bad} of {len(trials)} samples are not finite alone, with the weights of step {step}")
