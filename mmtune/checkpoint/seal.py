"""Folders that are either complete or absent.

A sealed folder is written beside its final place, flushed to the disk, closed by a manifest of SHA-256 digests as
its last file, and only then renamed. Every reader checks the digests first: safetensors detects a truncated file but
not a flipped bit. The price is one more pass over the bytes, about a second per gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from mmtune.disk import flush, put, read_text, remove

MANIFEST = "manifest.json"
"""Digests of all other files of a sealed folder; written last."""
MOST = 16 << 20
"""Largest manifest that is read, bytes."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make or replace a sealed folder.

    `fill` writes the files into the empty folder it is given. When anything fails, the draft is removed and the
    previous `folder` is unchanged; a process killed half way leaves the previous one, which `find` still finds.
    """
    draft, old = _beside(folder, "draft"), _beside(folder, "old")
    if not folder.parent.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        flush(folder.parent.parent)
    remove(draft)
    try:
        draft.mkdir()
        fill(draft)
        names = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
        digests = {}
        for name in names:
            flush(draft / name)
            digests[name] = {"sha256": file_digest(draft / name), "bytes": (draft / name).stat().st_size}
        seal = draft / MANIFEST
        put(seal, [_manifest(digests).encode()])
        flush(seal)
        for inner in [path for path in draft.rglob("*") if path.is_dir()]:
            flush(inner)
        flush(draft)
        if os.path.lexists(folder):
            # a kill between the two renames leaves `old` as the only complete one: deleted only when another is here
            remove(old)
            os.rename(folder, old)
        os.rename(draft, folder)
        flush(folder.parent)
        remove(old)
    except BaseException:
        remove(draft)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise


def _manifest(digests: dict[str, dict[str, object]]) -> str:
    return json.dumps({"files": digests}, indent=1)


def recover(folder: Path) -> None:
    """Delete what a killed `write` left beside a folder; if only the previous folder is left, it is restored.

    Only for the process that holds the folder's lock.
    """
    whole = find(folder)
    if whole != folder:
        os.rename(whole, folder)
        flush(folder.parent)
    for what in ("draft", "old"):
        remove(_beside(folder, what))


def faults(folder: Path) -> list[str]:
    """Mistakes of a sealed folder, in words; empty when every file has the bytes that were sealed."""
    seal = folder / MANIFEST
    if not folder.is_dir():
        return [f"{folder.name}: not there"]
    if seal.is_symlink():
        return [f"{MANIFEST}: a link"]
    try:
        text = read_text(seal, MOST)
        listed = json.loads(text)["files"]
        known = {name: (entry["sha256"], entry["bytes"]) for name, entry in listed.items()}
        if any(name.startswith("/") or ".." in name.split("/") for name in known):
            raise ValueError("names outside the folder")
        # the manifest has no digest itself, so it has to be byte for byte what `write` would write
        if text != _manifest(listed):
            raise ValueError("not as it was written")
    except FileNotFoundError:
        return [f"{MANIFEST}: missing, the folder was never sealed"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"{MANIFEST}: damaged"]
    found = []
    for name, (digest, size) in known.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            found.append(f"{name}: missing")
        elif path.stat().st_size != size or file_digest(path) != digest:
            found.append(f"{name}: its bytes are not those that were sealed")
    # this finds pipes and links, too: a reader of all files of a pattern would wait for them
    inside = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    here = {path.relative_to(folder).as_posix() for path in inside} - {MANIFEST}
    found += [f"{name}: not in the manifest" for name in sorted(here - set(known))]
    return found


def find(folder: Path) -> Path:
    """The folder, or the previous one beside it when a process was killed between the two renames of `write`."""
    old = _beside(folder, "old")
    return old if old.is_dir() and not folder.exists() else folder
