"""Shard patterns to files: `{00000..00099}`, `{a,b}`, `*`, `**`, a folder, one path, or the same at an address.

`**` stands for folders of any depth, none among them. A folder stands for the tar files in it, those of deeper folders
left out. What exists is meant as it is written: `set [v2]` is a folder where there is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from glob import escape, glob, has_magic
from pathlib import Path

from mmtune.data import raw, remote
from mmtune.data.remote import Remote
from mmtune.errors import DataError, Reason, UsageError

MOST = 1_000_000
"""Most files of one pattern."""
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
            found.setdefault(place(one), one)
    return list(found.values())


def place(path: Path | Remote) -> str:
    """The same for every spelling of a path."""
    return path.url if isinstance(path, Remote) else os.path.abspath(path)


def _files(pattern: str) -> list[Path | Remote]:
    paths: list[Path | Remote] = []
    others: list[Path] = []
    for name in [pattern] if os.path.exists(os.path.expanduser(pattern)) else braces(pattern):
        if (elsewhere := remote.find(name)) is not None:
            paths += elsewhere
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            others.append(path)
            paths += sorted(path.glob("*.tar"))
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
        what = what if paths else "nothing is there"
        raise DataError(
            Reason.truncated_shard, f"{pattern}: {what}", "tar files", "check the path; the working folder counts"
        )
    return paths


def _matches(path: Path) -> list[Path]:
    """What a pattern matches: files, and the tar files of folders; each once, whatever links lead there."""
    literal = Path()
    for part in path.parts:
        if has_magic(part) and not os.path.lexists(literal / part):
            break
        literal /= part
    rest: list[str] = []
    for part in path.parts[len(literal.parts) :]:  # `**.tar` is meant as `**/*.tar`
        rest += ["**", part[1:]] if part.startswith("**") and part != "**" else [part]
    found: dict[str, Path] = {}
    for match in sorted(glob(os.path.join(escape(str(literal)), *rest), recursive=True)):
        one = Path(match)
        for file in one.glob("*.tar") if one.is_dir() else [one]:
            if rest[-1:] != ["**"] or file.suffix == ".tar":
                found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def braces(pattern: str) -> Iterator[str]:
    """`a{0..2}b` to a0b, a1b, a2b (zeros in front are kept); `{x,y}` to both. No nesting."""
    head, left, rest = pattern.partition("{")
    inside, right, tail = rest.partition("}")
    if not left or not right:
        yield pattern
        return
    span = _RANGE.fullmatch(inside)
    if span:
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if last - first > MOST:
            raise UsageError(seen=f"{pattern}: {last - first + 1} files", expected=f"at most {MOST}")
        choices: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + 1))
    else:
        choices = inside.split(",")
    for choice in choices:
        for rest in braces(tail):
            yield f"{head}{choice}{rest}"
