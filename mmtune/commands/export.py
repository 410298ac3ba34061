"""`mmtune export`: a run in a published layout."""

from __future__ import annotations

from pathlib import Path


def layouts() -> list[str]:
    """Layouts that a run can be exported to."""
    from mmtune.checkpoint import convert

    return convert.layouts_out()


def run(folder: str, layout: str, out: Path, options: list[str]) -> None:
    """Export, and print the folder. Raises as `convert.send` does."""
    from mmtune.checkpoint import convert

    written = convert.export_checkpoint(folder, layout, out, options, say=print)
    print(f"{layout} is in {written}: " + ", ".join(sorted(path.name for path in written.iterdir())))
