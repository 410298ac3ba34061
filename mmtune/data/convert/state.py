"""The folder of a conversion: its existing files, its source, and the final report."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.data import index as indexes
from mmtune.data.convert import locations
from mmtune.data.convert.write import NOTES, Job
from mmtune.errors import UsageError

VERSION = 1
PATIENCE = 20.0
"""Seconds that the end of another conversion is waited for."""
ABOUT, REPORT = "convert.json", "convert.jsonl"
"""What was converted and how it went; and a line for each record that was refused."""
_OURS = re.compile(r"\d{5}\.tar(\.index\.json)?")
_DRAFT = re.compile(
    r"\d{5}\.tar\.\d+\.part|\.(convert\.jsonl?|manifest\.json|\d{5}\.tar\.index\.json)\.(draft-\d+|\d+\.part)"
)
"""Half of a file, of a conversion that was killed."""


def settings(job: Job) -> dict[str, Any]:
    """What the shards are a function of."""
    options = job.options
    return {
        "version": VERSION,
        "source": job.source.stamps(),
        "format": job.schema,
        "media": [locations.shown(locations.parse(one)) for one in options.media],
        "rename": dict(sorted(options.rename.items())),
        "ignore": sorted(options.ignore),
        "per_shard": options.per_shard,
        "limit": options.limit,
        "frame_rate": options.frame_rate,
    }


def begin(job: Job, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Prepare the folder; returns the `convert.json` of an earlier conversion that is continued, if there is one.

    Raises UsageError: links in the folder, shards of something else, or of a conversion that was another.
    """
    out, wanted = job.out, settings(job)
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(os.listdir(out))
    linked = [name for name in names if (out / name).is_symlink() and (name in _FILES or _OURS.fullmatch(name))]
    if linked:
        raise UsageError(
            f"{out / linked[0]} is a link", "a folder of its own for the shards", "remove it, or another --out"
        )
    before = _about(out)
    if before and overwrite and not resume:
        _remove(out, names)
        names, before = sorted(os.listdir(out)), {}
    shards = [name for name in names if name.endswith(".tar")]
    if shards and not before:
        seen = f"{out} holds {len(shards)} shards that are not of a conversion, as {shards[0]}"
        raise UsageError(seen, "an empty folder: all shards of a folder are read", "another --out")
    if before and not resume:
        state = "finished" if before.get("finished") else "stopped"
        expected = "an empty folder: all shards of a folder are read"
        hint = "--overwrite converts again, or another --out"
        hint = hint if before.get("finished") else f"--resume continues it, {hint}"
        raise UsageError(f"{out} holds a conversion that is {state}, {len(shards)} shards", expected, hint)
    if before:
        changed = [key for key, value in wanted.items() if before.get("settings", {}).get(key) != value]
        if changed:
            seen = f"{out} holds a conversion of another source or with other options: {', '.join(changed)}"
            raise UsageError(
                seen, "the same source and options as before", "--overwrite instead of --resume, or another --out"
            )
    (out / NOTES).mkdir(exist_ok=True)
    for name in names:
        if _DRAFT.fullmatch(name):
            (out / name).unlink()
    if not before:
        disk.write_file(out / ABOUT, json.dumps({"settings": wanted, "finished": False}, indent=1))
    return before


_FILES = (ABOUT, REPORT, NOTES, "manifest.json", f"{NOTES}.lock")


def _about(out: Path) -> dict[str, Any]:
    path = out / ABOUT
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree["settings"], dict):
            raise TypeError("settings")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", "the record of a conversion", "another --out") from error
    return dict(tree)


def _remove(out: Path, names: Iterable[str]) -> None:
    """Remove what conversions write, and nothing else."""
    for name in names:
        if name == NOTES:
            shutil.rmtree(out / name)
        elif name in _FILES or _OURS.fullmatch(name) or _DRAFT.fullmatch(name):
            (out / name).unlink()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock the folder against other conversions. Raises UsageError, and OSError where the lock is a link.

    Processes of a conversion that was killed hold it, too, until they are done with their piece; so it is waited for.
    """
    path = out / f"{NOTES}.lock"
    file = disk.open_plain(path, os.O_RDWR)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > end:
                    seen = f"{out}: another conversion writes into it"
                    raise UsageError(seen, "one at a time", "wait until it ends, or another --out") from error
                time.sleep(0.1)
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(file)


def finish(job: Job, about: dict[str, Any], shards: list[Path], refused: Iterator[dict[str, Any]]) -> None:
    """Write report, manifest and summary, and take the notes away."""
    out = job.out
    draft = out / f".{REPORT}.{os.getpid()}.part"
    with disk.create(draft) as file:
        for line in refused:
            file.write((json.dumps(line) + "\n").encode())
    os.replace(draft, out / REPORT)
    read = {
        path: indexes.ShardIndex.parse(indexes.beside(path).read_text(encoding="utf-8"), str(path)) for path in shards
    }
    indexes.record(read)
    disk.write_file(out / ABOUT, json.dumps({"settings": settings(job), "finished": True, **about}, indent=1))
    shutil.rmtree(out / NOTES)
