"""What was given as shards and is none: told what it is, and the one command that makes shards of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mmtune.errors import UsageError


def refusal(path: Path) -> UsageError | None:
    """The error for a file of records or a folder without shards; None where nothing is known about it."""
    if path.is_file():
        if path.suffix == ".tar":
            return None
        with path.open("rb") as file:
            head = file.read(512)
        if not head or head[257:262] == b"ustar":
            return None
    elif not path.is_dir():
        return None

    from mmtune.data.convert import sources
    from mmtune.data.convert.base import Options

    words, what = "", ""
    try:
        what = sources.find(str(path), Options()).what
    except UsageError as error:
        if path.is_dir() and error.hint and not error.hint.startswith("--"):  # media, and what their records lack
            return error
        if not error.hint.startswith("--split"):
            return None
        what, words = "a data set with several splits", f" {error.hint}"
    name = re.sub(r"[^\w.-]+", "_", path.resolve().stem) or "mine"
    out = f"shards/{name}"
    return UsageError(
        seen=f"{path} is {what}, and not shards",
        expected="tar files of records and their media, as `mmtune data convert` makes them",
        hint=f"mmtune data convert {shlex.quote(str(path))} --out {out}{words}, then data: [{out}/*.tar]",
    )
