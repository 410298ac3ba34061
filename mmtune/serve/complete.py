"""What Tab offers: commands, and names of files wherever in a line, blanks, quotes and backslashes included."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SPECIAL = re.compile(r"""([\s\\'"$`&|;<>()*?\[\]#!])""")
Words = Mapping[str, Callable[[], Sequence[str]] | None]
"""Commands with what may follow them; none for a path or free text."""


def complete(line: str, begin: int, commands: Words) -> list[str]:
    """Candidates for the end of a line.

    Args:
        line: what stands before the cursor.
        begin: where the piece begins that a candidate takes the place of, as readline cuts the line at blanks.
        commands: names of commands, each with a function that gives its words.
    """
    if line.startswith("/") and " " not in line and "/" not in line[1:]:
        found = [f"/{name} " for name in commands if f"/{name}".startswith(line)]
        if found:
            return found
    name, _, rest = line[1:].partition(" ") if line.startswith("/") else ("", "", "")
    offered = commands.get(name)
    if offered is not None:
        return [f"{word} " for word in offered() if word.startswith(rest)]
    return _files(line, begin)


def _files(line: str, begin: int) -> list[str]:
    """Names of files that go on from the line, from `begin`."""
    for start in _starts(line):
        token = line[start:]
        if start > begin:
            break
        path, quote, escaped = _unquoted(token)
        names = _listed(path)
        if not names:
            continue
        typed, known = token[begin - start :], len(path.rpartition("/")[2])
        plain = bool(quote) or (" " in token and not escaped)
        rests = [(name[known:] if plain else _SPECIAL.sub(r"\\\1", name[known:]), folder) for name, folder in names]
        return [typed + rest + ("/" if folder else f"{quote} ") for rest, folder in rests]
    return []


def _starts(line: str) -> list[int]:
    """Where a name may begin: an open quote, the last blank, after a command, or where a path clearly begins."""
    quoted = [match.start() for match in re.finditer(r"(?<!\S)['\"]", line)]
    blanks = [match.end() for match in re.finditer(r"(?<!\\)\s+|^", line)]
    opened = [at for at in quoted if line.find(line[at], at + 1) < 0]
    last = blanks[-1:]
    pathlike = [at for at in blanks if re.match(r"/|~|\.{1,2}/", line[at:])]
    behind = [match.end() for match in re.finditer(r"^/\w+\s+", line)]
    return [*opened, *last, *behind, *pathlike]


def _unquoted(token: str) -> tuple[str, str, bool]:
    """A name as it stands in the file system so far, the quote that it began with, and whether it has backslashes."""
    if token[:1] in ("'", '"'):
        return token[1:], token[0], False
    return re.sub(r"\\(.)", r"\1", token), "", "\\" in token


def _listed(path: str) -> list[tuple[str, bool]]:
    """Files and folders whose names begin as the path ends."""
    folder, _, begin = path.rpartition("/")
    try:
        base = Path(folder + "/" if folder or path.startswith("/") else ".").expanduser()
        found = sorted(entry for entry in base.iterdir() if entry.name.startswith(begin))
        return [(entry.name, entry.is_dir()) for entry in found if begin or not entry.name.startswith(".")]
    except (OSError, RuntimeError, ValueError):
        return []

