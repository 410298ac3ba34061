"""Results of experts, cached on disk, so that a picture is read once and not once for each question and run.

An entry is a small JSON file with its own digest. One that is damaged, or of another layout, is as if it were not
there, and the next result is written over it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.experts import _protocol
from mmtune.experts.base import Evidence

LAYOUT = 1
"""Counted up when the meaning of an entry changes."""


def default_folder() -> Path | None:
    """`$MMTUNE_CACHE/experts`, else `experts` in `mmtune` of `$XDG_CACHE_HOME` or `~/.cache`.

    An empty MMTUNE_CACHE keeps nothing: none.
    """
    wish = os.environ.get("MMTUNE_CACHE")
    if wish is not None:
        return Path(wish).expanduser() / "experts" if wish else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mmtune" / "experts"


def key(facts: Mapping[str, Any]) -> str:
    """The name of an entry: a digest of everything that decides what an expert finds."""
    return hashlib.sha256(json.dumps({"layout": LAYOUT, **facts}, sort_keys=True).encode()).hexdigest()


class Cache:
    """Results by key.

    Args:
        folder: the folder of the cache, created at the first result, for its owner only; None disables the cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, name: str) -> tuple[tuple[Evidence, ...], bool] | None:
        """Evidence and whether it was cut; None for an entry that is missing or damaged."""
        if self.folder is None:
            return None
        try:
            with self._path(name).open("rb") as file:
                data = file.read(2 * _protocol.MAX_REPLY)
            tree = json.loads(data)
            reply = tree["reply"].encode("ascii")
            if tree["key"] != name or tree["sha256"] != _digest(name, reply):
                return None
            return _protocol.unpack(reply)
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError, _protocol.WireError):
            return None

    def put(self, name: str, found: tuple[Evidence, ...], cut: bool) -> None:
        """Keep a result. A disk that is full or may not be written is no reason to fail: then it is not kept."""
        if self.folder is None:
            return
        reply = _protocol.pack(found, cut)
        tree = {"key": name, "sha256": _digest(name, reply), "reply": reply.decode("ascii")}
        path = self._path(name)
        draft = path.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk.folder(path.parent, 0o700)
            disk.put(draft, [json.dumps(tree).encode()])
            os.replace(draft, path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name[:2] / f"{name}.json"


def _digest(name: str, reply: bytes) -> str:
    return hashlib.sha256(name.encode() + reply).hexdigest()
