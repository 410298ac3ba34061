"""`mmtune eval`."""

from __future__ import annotations

from pathlib import Path


def run(
    folder: Path,
    task: str | None,
    data: list[str],
    limit: int | None,
    controls: list[str],
    every: bool,
    out: Path | None,
    device: str,
    experts: list[str] | None = None,
    types: list[str] | None = None,
    allow_remote: bool = False,
) -> None:
    """Ask, score, print the report and write it.

    Args:
        controls: controls to ask under; empty asks without one.
        every: ask without a control and under every one.
        experts: NAME[:key=value,...]; with any, all questions are asked without them and with them.
        types: ask only questions of these types; all when none are given.
        allow_remote: contact addresses that only the recipe of the run names.
    """
    from mmtune.serve.experts import Adviser, Panel
    from mmtune.serve.terminal import say

    panel = Panel(experts or [])  # names and options are checked before anything slow begins

    from mmtune.eval.controls import CONTROLS
    from mmtune.eval.run import evaluate

    try:
        evaluate(
            folder,
            task,
            data,
            limit=limit,
            controls=CONTROLS if every else [*["plain"] * bool(experts), *controls] or None,
            out=out,
            device=device,
            experts=Adviser(panel, say) if panel else None,
            types=types or (),
            allow_remote=allow_remote,
        )
    finally:
        panel.close()
