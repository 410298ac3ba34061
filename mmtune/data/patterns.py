"""Shard patterns to files: `{00000..00099}`, `{a,b}`, `*`, `**`, a folder, one path, or the same at an address.

`**` stands for folders of any depth, none among them. A folder stands for the tar files in it, those of deeper folders
left out. What exists is meant as it is written: `set [v2]` is a folder where there is one.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob, has_magic
from pathlib import Path

from mmtune import addresses
from mmtune.data import raw, remote
from mmtune.data.remote import Remote
from mmtune.errors import DataError, Reason, UsageError

MOST = 1_000_000
"""Most files of one pattern."""
FOLDERS = 50_000
"""Most folders that `**` stands for: a whole disk has more."""
SECONDS = 30
"""Most time for them."""
_OTHERS = (".json", ".jsonl", ".part")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(patterns: Iterable[str | Path | Remote] | str | Path) -> list[Path | Remote]:
    """The files of some patterns in their order, each once; what `*` matches is sorted.

    Raises:
        DataError: a pattern matches nothing, or a numbered range names files that are not there.
        UsageError: an address of a kind that is not read, or records of which shards are still to be made.
        MmtuneError: an address that has to be listed and cannot be reached.
    """
    found: dict[str, Path | Remote] = {}
    for pattern in [patterns] if isinstance(patterns, (str, Path)) else patterns:
        for one in [pattern] if isinstance(pattern, Remote) else _files(str(pattern)):
            found.setdefault(canonical_path(one), one)
    return list(found.values())


def canonical_path(path: Path | Remote) -> str:
    """The same for every spelling of a path."""
    return path.url if isinstance(path, Remote) else os.path.abspath(path)


def _files(pattern: str) -> list[Path | Remote]:
    paths: list[Path | Remote] = []
    others: list[Path] = []
    # An address is one as it is written: `https:{/,/}/HOST` would pass by all who look for addresses in a recipe.
    written = "{" not in pattern or addresses.is_address(pattern)
    if not written and remote.has_scheme(pattern):
        remote.check(pattern)
    for name in _names(pattern):
        if written and (elsewhere := remote.find(name)) is not None:
            paths += elsewhere
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            others.append(path)
            paths += _tars(path)
        elif has_magic(name) and not path.is_file():
            # beside shards lie their indexes and a manifest, which `*` matches, too
            matches = _matches(path)
            others += matches[:1]
            paths += [match for match in matches if not match.name.endswith(_OTHERS)]
        else:
            paths.append(path)
        if len(paths) > MOST:
            raise UsageError(seen=f"{pattern}: more than {MOST} files", expected="fewer")
    candidates = [path for path in paths if isinstance(path, Path) and path.suffix != ".tar"][:1] if paths else others
    for path in candidates:
        if (error := raw.refusal(path)) is not None:
            raise error
    missing = [str(path) for path in paths if isinstance(path, Path) and not path.is_file()]
    if missing or not paths:
        what = f"{len(missing)} of {len(paths)} files are missing: {', '.join(missing[:3])}"
        if not paths:
            what = "no tar file is in it" if any(one.is_dir() for one in others) else "nothing is there"
        raise DataError(
            Reason.truncated_shard, f"{pattern}: {what}", "tar files", "check the path; the working folder counts"
        )
    return paths


def _names(pattern: str) -> Iterator[str]:
    """The choices of a pattern. Braces of folders that exist are letters."""
    if "{" not in pattern or remote.has_scheme(pattern):
        yield from braces(pattern)
        return
    literal, rest = _as_written(Path(pattern).expanduser())
    yield from (str(literal / choice) for choice in braces("/".join(rest)))


def _matches(path: Path) -> list[Path]:
    """What a pattern matches: files, and the tar files of folders; each once, by its shortest name."""
    literal, rest = _as_written(path)
    found = [literal]
    for part in rest:
        if part.startswith("**"):
            found = [inside for folder in found for inside in _folders(folder)]
            part = part[2:] and f"*{part[2:]}"  # `**.tar` is meant as `**/*.tar`
        if part:
            found = [Path(match) for folder in found for match in sorted(glob(os.path.join(escape(str(folder)), part)))]
    files = [file for one in found for file in (_tars(one) if one.is_dir() else [one])]
    once = {os.path.realpath(file): file for file in sorted(files, key=lambda file: (-len(file.parts), file))}
    return sorted(once.values())


def _as_written(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folders at the beginning of a pattern that exist as they are written, and the parts that are left."""
    literal = Path()
    for number, part in enumerate(path.parts):
        if set(part) & set("*?[{") and not os.path.lexists(literal / part):
            return literal, path.parts[number:]
        literal /= part
    return literal, ()


def _folders(top: Path) -> Iterator[Path]:
    """A folder and those in it at any depth, the near ones first; each once, so links that lead in circles end."""
    seen: set[str] = set()
    level = [top]
    until = time.monotonic() + SECONDS
    while level:
        new = {real: one for one in reversed(level) if (real := os.path.realpath(one)) not in seen}
        seen |= new.keys()
        if len(seen) > FOLDERS or time.monotonic() > until:
            raise UsageError(
                f"{top}/**: {len(seen):,} folders in {SECONDS + time.monotonic() - until:.0f} s, and more to come",
                f"at most {FOLDERS:,} folders below `**`, looked through within {SECONDS} s",
                "begin the pattern nearer to the shards, or name the folders one by one",
            )
        level = sorted(new.values())
        yield from level
        level = list(itertools.islice(_below(level, until), FOLDERS + 1))


def _below(level: list[Path], until: float) -> Iterator[Path]:
    """The folders inside some folders, those that are hidden left out, as long as there is time."""
    for folder in level:
        yield from (one for one in _inside(folder) if not one.name.startswith(".") and os.path.isdir(one))
        if time.monotonic() > until:
            yield folder  # so that there is a next level, at which this is refused
            return


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # one that may not be read holds nothing for us
        return []


def _tars(folder: Path) -> list[Path]:
    return sorted(one for one in _inside(folder) if one.suffix.lower() == ".tar")


def braces(pattern: str) -> Iterator[str]:
    """`a{0..2}b` to a0b, a1b, a2b (zeros in front are kept); `{x,y}` to both. No nesting.

    Raises UsageError: more than `MOST` choices, which are counted before the first is made.
    """
    pieces: list[Sequence[str]] = []
    rest = pattern
    while True:
        head, left, more = rest.partition("{")
        inside, right, tail = more.partition("}")
        if not left or not right:
            break
        pieces += [[head], _choices(inside, pattern)]
        rest = tail
    if (count := math.prod(map(len, pieces))) > MOST:
        raise _too_many(pattern, count)
    for words in itertools.product(*pieces, [rest]):
        yield "".join(words)


def _choices(inside: str, pattern: str) -> Sequence[str]:
    span = _RANGE.fullmatch(inside)
    if not span:
        return inside.split(",")
    if max(len(span[1]), len(span[2])) > 18 or (count := int(span[2]) - int(span[1]) + 1) > MOST:
        raise _too_many(pattern, count if len(span[2]) <= 18 else MOST + 1)
    return [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]


def _too_many(pattern: str, count: int) -> UsageError:
    return UsageError(f"{pattern[:200]}: {count:,} files by its braces", f"at most {MOST:,}", "name a folder")
