"""`mmtune eval`."""

from __future__ import annotations

from pathlib import Path


def run(
    folder: Path,
    task: str,
    data: list[str],
    limit: int | None,
    controls: list[str],
    every: bool,
    out: Path | None,
    device: str,
) -> None:
    """Ask, score, print the report and write it.

    Args:
        controls: what to ask under; empty asks plainly.
        every: the plain questions and every control.
    """
    from mmtune.eval.controls import CONTROLS
    from mmtune.eval.run import evaluate

    evaluate(
        folder,
        task,
        data,
        limit=limit,
        controls=CONTROLS if every else controls or None,
        out=out,
        device=device,
    )
