"""A conversation as plain data: written by `/save` and for `mmtune chat -c`, and read back.

A medium is saved as its path with the digest of the bytes that were shown, never as its bytes. One that is gone or has
changed is left out with a note when the conversation is read back, so that the model never sees another one instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune import renamed
from mmtune.errors import MmtuneError, UsageError
from mmtune.serve.settings import Settings
from mmtune.types import KINDS, MediaRef, Part, Quote, Turn

LARGEST = 16 << 20
"""Bytes of a saved conversation that is read back."""
_MEDIUM = 1 << 30
"""Bytes of a medium that is compared with its digest."""

Check = Callable[[Any, str], None]
"""Given kind and origin of a medium; raises UsageError where the run does not take it."""
Digest = Callable[[MediaRef], str]


def record(
    run: str,
    system: str | None,
    settings: dict[str, Any],
    turns: Sequence[Turn],
    waiting: Iterable[MediaRef | Quote],
    digest: Digest,
) -> dict[str, Any]:
    """Everything of a conversation.

    Args:
        digest: sha256 of a medium as it was when it was shown.
    """
    head = (Turn("system", (system,)),) if system else ()
    return {
        "run": run,
        "system": system,
        "settings": settings,
        "turns": [
            {"role": turn.role, "parts": [_plain(part, digest) for part in turn.parts]} for turn in (*head, *turns)
        ],
        "waiting": [_plain(part, digest) for part in waiting],
    }


def dumps(tree: dict[str, Any]) -> bytes:
    """JSON in UTF-8; half characters, as names of files may have them, are written as escapes."""
    try:
        return json.dumps(tree, ensure_ascii=False, indent=1).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(tree, indent=1).encode() + b"\n"


@dataclass
class Saved:
    """A conversation as it was read from a file."""

    turns: list[dict[str, Any]]
    waiting: list[dict[str, Any]] = field(default_factory=list)
    system: str | None = None
    settings: dict[str, float] = field(default_factory=dict)
    run: str | None = None

    def summary(self) -> str:
        """How much of it there is, for people."""
        media = sum(part["type"] in KINDS for turn in self.turns for part in turn["parts"])
        exchanges = len(self.turns) // 2
        shown = f", {media} {'media' if media > 1 else 'medium'} shown" if media else ""
        return f"{exchanges} {'exchange' if exchanges == 1 else 'exchanges'}{shown}"

    def restored(self, check: Check | None = None) -> tuple[list[Turn], list[MediaRef | Quote], list[str]]:
        """Turns, what waits, and a line for each medium that is left out."""
        notes: list[str] = []
        turns = [Turn(turn["role"], tuple(_parts(turn["parts"], check, notes))) for turn in self.turns]
        waiting = [part for part in _parts(self.waiting, check, notes) if not isinstance(part, str)]
        return turns, waiting, list(dict.fromkeys(notes))


def read(path: Path) -> Saved:
    """A conversation that was saved.

    Raises:
        UsageError: no such file, or not one that `/save` wrote.
    """
    try:
        if not path.is_file():
            raise UsageError(
                seen=f"{path}: " + ("no plain file" if path.exists() else "no such file"),
                expected="a conversation that /save wrote",
            )
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise _wrong(path, f"it has more than {LARGEST >> 20} MiB")
        tree = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(
            seen=f"{path}: {(error.strerror or str(error)).lower()}", expected="a file that can be read"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "it is no JSON") from error
    return _saved(path, tree)


def _saved(path: Path, tree: Any) -> Saved:
    if not isinstance(tree, dict) or not isinstance(tree.get("turns"), list):
        raise _wrong(path, "it has no list of turns")
    turns = [_today(turn, "parts") for turn in tree["turns"]]
    waiting, settings = _today(tree, "waiting").get("waiting", []), tree.get("settings", {})
    for turn in turns:
        if not isinstance(turn, dict) or not _are_parts(turn.get("parts")):
            raise _wrong(path, "a turn is not of a role and parts")
    roles = [turn.get("role") for turn in turns]
    if roles[:1] == ["system"]:
        turns, roles = turns[1:], roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise _wrong(path, "its turns are not questions with their answers")
    system, run = tree.get("system"), tree.get("run")
    texts = all(isinstance(one, (str, type(None))) for one in (system, run))
    numbers = isinstance(settings, dict) and all(
        type(value) in ((int, float) if name == "temperature" else (int,)) for name, value in settings.items()
    )
    if not (texts and numbers and set(settings) <= set(vars(Settings())) and _are_parts(waiting)):
        raise _wrong(path, "its system text, settings, or waiting media are not as they are written")
    Settings(**settings)  # refuses values out of range
    return Saved(turns, waiting, system, settings, run)


def _today(tree: Any, parts: str) -> Any:
    """A tree whose list `parts` may have old keys, with today's; whatever has no such list is left to the checks."""
    if not isinstance(tree, dict) or not isinstance(tree.get(parts), list):
        return tree
    return {**tree, parts: [renamed.keys(part, renamed.PARTS) for part in tree[parts]]}


def _are_parts(parts: Any) -> bool:
    return isinstance(parts, list) and all(
        isinstance(part, dict)
        and isinstance(part.get("type"), str)
        and all(isinstance(part.get(name), str) for name in _FIELDS.get(part["type"], ("nothing",)))
        and isinstance(part.get("path"), (str, type(None)))
        and all(isinstance(part.get(name), (int, float, type(None))) for name in ("start", "end"))
        for part in parts
    )


_FIELDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "quote": ("source", "text"),
    **dict.fromkeys(KINDS, ("origin", "sha256")),
}


def _wrong(path: Path, why: str) -> UsageError:
    return UsageError(seen=f"{path} is no conversation: {why}", expected="a file that /save wrote")


def _plain(part: Part, digest: Digest) -> dict[str, Any]:
    match part:
        case MediaRef():
            path = str(part.source.absolute()) if isinstance(part.source, Path) else None
            clip = {"start": part.start, "end": part.end} if part.range else {}
            return {"type": part.kind, "origin": part.origin, "path": path, "sha256": digest(part), **clip}
        case Quote():
            return {"type": "quote", "source": part.source, "text": part.text}
        case _:
            return {"type": "text", "text": part}


def _parts(parts: list[dict[str, Any]], check: Check | None, notes: list[str]) -> Iterable[Part]:
    for part in parts:
        if part["type"] == "text":
            yield part["text"]
        elif part["type"] == "quote":
            yield Quote(part["source"], part["text"])
        else:
            try:
                ref = _medium(part)
                if check:
                    check(ref.kind, ref.origin)
                yield ref
            except MmtuneError as error:
                notes.append(f"{error.seen}; it is left out")


def _medium(part: dict[str, Any]) -> MediaRef:
    """The medium of a part. Raises MmtuneError when it differs from the one that was shown."""
    origin, kind = part["origin"], part["type"]
    if not part.get("path"):
        raise UsageError(seen=f"{kind} {origin} was never a file")
    path = Path(part["path"])
    try:
        if not path.is_file():
            raise UsageError(seen=f"{kind} {origin} is not at {path} any more")
        if path.stat().st_size > _MEDIUM or _digest(path) != part["sha256"]:
            raise UsageError(seen=f"{kind} {origin} has changed since it was shown")
    except (OSError, ValueError) as error:
        raise UsageError(seen=f"{kind} {origin} cannot be read any more: {error}") from error
    return MediaRef(kind, path, origin, part.get("start"), part.get("end"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
