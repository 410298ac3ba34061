"""Whether a folder can be trained in, asked before the first file is written."""

from __future__ import annotations

from pathlib import Path

from mmtune.errors import UsageError

FOLDERS = ("state", "weights", "best", "tensorboard", "wandb", "prompts")
FILES = ("recipe.yaml", "base.yaml", "card.md", "metrics.jsonl", "skipped.jsonl")


def fault(out: Path, resume: bool) -> UsageError | None:
    """The error for a folder in which a run cannot train; None if it can.

    Its own entries may not be links: a folder that somebody hands over would have what is written arrive elsewhere.
    The folder itself may be one, since its user chose it.
    """
    if not resume and (out / "recipe.yaml").exists():
        return UsageError(
            seen=f"{out} holds a run already",
            expected="an empty or new folder",
            hint=f"mmtune train --resume {out}, or another --out",
        )
    for name in (*FOLDERS, *FILES):
        path, what = out / name, "folder" if name in FOLDERS else "file"
        if path.is_symlink() or (path.exists() and not (path.is_dir() if name in FOLDERS else path.is_file())):
            seen = "is a link" if path.is_symlink() else f"is no {what}"
            return UsageError(
                seen=f"{path} {seen}, and what is saved goes there",
                expected=f"a {what}, or nothing of that name",
                hint="move it away, or train into another folder with --out",
            )
    return None
