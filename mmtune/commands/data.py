"""`mmtune data make` and `mmtune data index`."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def make(
    *, out: Path, clips: int, seed: int, level: str, split: str, per_shard: int, workers: int, kinds: str | None = None
) -> None:
    """Draw clips of the pocket world into shards under `out`, and index them.

    Raises:
        UsageError: an unknown level, split or kind.
    """
    from mmtune.data.world.make import CYCLE, make_shards

    start = time.monotonic()

    about = [word.strip() for word in kinds.split(",")] if kinds else CYCLE

    def progress(done: int) -> None:
        if sys.stderr.isatty() and (done % 10 == 0 or done == clips):
            print(f"\r{done} of {clips} clips", end="\n" if done == clips else "", file=sys.stderr, flush=True)

    paths = make_shards(
        out, clips, seed, level, split=split, per_shard=per_shard, workers=workers, progress=progress, kinds=about
    )
    for path in paths:
        print(path)
    print(f"{clips} clips in {time.monotonic() - start:.1f} s", file=sys.stderr)
    index([str(path) for path in paths])


def index(patterns: list[str]) -> None:
    """Index shards and print the findings.

    Raises:
        DataError: a pattern that matches nothing, or a shard that cannot be read.
    """
    from mmtune.data.index import index_shards

    for line in index_shards(patterns, say=_say):
        _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
