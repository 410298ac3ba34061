"""`mmtune export`: a run in a published layout."""

from __future__ import annotations

from pathlib import Path


def kinds() -> list[str]:
    """Layouts that a run can be written in."""
    from mmtune.checkpoint import convert

    return convert.kinds_out()


def run(folder: str, kind: str, out: Path, options: list[str]) -> None:
    """Export, and say where. Raises what `carry.send` raises."""
    from mmtune.checkpoint import convert

    written = convert.send(folder, kind, out, options, tell=print)
    print(f"{kind} is in {written}: " + ", ".join(sorted(path.name for path in written.iterdir())))
