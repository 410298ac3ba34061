"""Files inside what a person types: dropped on a terminal, pasted, completed, or named in the middle of a question.

Terminals paste a dropped file as a word of a shell: in quotes ('/a/my dog.mp4', '/a/it'\\''s.mp4'), with backslashes
(/a/my\\ dog.mp4), as an address (file:///a/my%20dog.mp4), or bare, blanks and all. A word is taken for a file only when
there is such a file and it holds media, so that `true/false?` and `what does "STOP" mean?` stay words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmtune.errors import UsageError
from mmtune.serve import time_ranges
from mmtune.serve.references import located, reference, sniffed
from mmtune.types import Kind, MediaRef

_AFTER = "?!.,;:)]}>\"'\u2019\u201d"
"""Characters that may follow a name directly and are not part of it."""
_WORDS = 24
"""Words that a name written without quotes may have."""
_LONGEST = 4096
"""Characters that a name may have."""
_PATHLIKE = re.compile(r"(?:/|~[\w.-]*/|\.{1,2}/|file:)", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:\\", re.IGNORECASE)
_SUFFIXES = (
    "jpe?g|jfif|png|gif|webp|bmp|tiff?|mp4|m4v|mov|mkv|webm|avi|wav|flac|ogg|opus|mp3|m4a|ply|pcd|npy|npz|off|xyz"
)
_SUFFIX = re.compile(rf"\.(?:{_SUFFIXES})$", re.IGNORECASE)
_ELSEWHERE = re.compile(rf"[a-z][a-z0-9+.-]*://[^\s?#]+\.(?:{_SUFFIXES})(?=$|[\s?#,;)])", re.IGNORECASE)


@dataclass
class Typed:
    """What a person typed: the media, in order, and the words that are left."""

    media: list[MediaRef] = field(default_factory=list)
    question: str = ""
    unread: list[str] = field(default_factory=list)
    """Addresses of media on other machines, which stay words."""


def shell_word(text: str, start: int = 0) -> tuple[str, int] | None:
    """The word of a shell that begins at `start`, quotes and backslashes resolved, and where it ends.

    None where a quote is not closed.
    """
    word: list[str] = []
    at, quote = start, ""
    while at < len(text):
        letter = text[at]
        if quote:
            if letter == quote:
                quote = ""
            elif letter == "\\" and quote == '"' and text[at + 1 : at + 2] in ('"', "\\", "$", "`"):
                at += 1
                word.append(text[at])
            else:
                word.append(letter)
        elif letter in "'\"":
            quote = letter
        elif letter == "\\" and at + 1 < len(text):
            at += 1
            word.append(text[at])
        elif letter.isspace():
            break
        else:
            word.append(letter)
        at += 1
    return None if quote else ("".join(word), at)


def whole_path(text: str) -> str:
    """A line that is one path and nothing else, as `/save` takes it: quoted, escaped, or bare with its blanks."""
    text = text.strip()
    word = shell_word(text)
    return word[0] if word and word[1] == len(text) else text


def path_first(kind: Kind | None, text: str) -> Typed:
    """A text that begins with a path, as `/image PATH` has it; a range and a question may follow.

    Raises:
        UsageError: no such file, or not of this kind.
    """
    path, end = next(_names_at(text, 0, bare=True), None) or shell_word(text) or ("", 0)
    if not path:
        raise UsageError(seen=text, expected="a path; one that begins with a quote must end with it")
    ref, rest = _with_range(kind, path, text[end:])
    more = media_in(rest)
    return Typed([ref, *more.media], more.question, more.unread)


def media_in(text: str) -> Typed:
    """The media that a text names, wherever in it, and the text as a question about them.

    A name at an edge of the text is taken out, one inside a sentence is left as the bare name of the file.

    Raises:
        UsageError: the path of a media file that does not exist, or that is a folder or an address.
    """
    typed, said, at, copied = Typed(), "", 0, 0
    while at < len(text):
        if text[at].isspace() or (at and not text[at - 1].isspace() and text[at - 1] not in "([{<"):
            at += 1
            continue
        found = _file_at(text, at)
        if found is None:
            _refuse_missing(text, at)
            at += 1
            continue
        path, end = found
        said += text[copied:at]
        ref, rest = _with_range(None, path, text[end:])
        if ref not in typed.media:
            typed.media.append(ref)
        at = copied = len(text) - len(rest)
        said += _remaining_name(said, located(path).name, rest)
    typed.question = (said + text[copied:]).strip()
    if typed.media and not typed.question.strip(_AFTER + " "):
        typed.question = ""
    typed.unread = [one for one in _ELSEWHERE.findall(typed.question) if not one.lower().startswith("file:")]
    return typed


def names_media(word: str) -> bool:
    """Whether a word has the name of a media file, there or not."""
    return bool(_SUFFIX.search(word)) and not any(letter.isspace() for letter in word)


def begins_with_path(text: str) -> bool:
    """Whether a line that begins with a slash is about a file rather than a command."""
    return "/" in text.split(maxsplit=1)[0][1:] or _file_at(text, 0) is not None


def _remaining_name(before: str, name: str, rest: str) -> str:
    """What stays of a name in the text: nothing at an edge, else the name without its folder."""
    before = before.rstrip()
    if not before:
        return ""
    ends = not any(letter.isalnum() for letter in rest)
    if ends and before[-1] in ".?!:;,\n" and not rest.strip():
        return ""
    return name


def _with_range(kind: Kind | None, path: str, rest: str) -> tuple[MediaRef, str]:
    """The medium, with the range that follows its name, and the text after that."""
    ref = reference(kind, path)
    timed = ref.kind in ("video", "audio") or located(path).suffix.lower() == ".gif"
    if timed and rest[:1].isspace():
        span, behind = time_ranges.leading(rest)
        if span:
            return reference(kind, path, span), behind
    return ref, rest


def _file_at(text: str, at: int) -> tuple[str, int] | None:
    """A media file whose name begins at `at`, as (path, where the name ends)."""
    for path, end in _names_at(text, at):
        plain = bool(_PATHLIKE.match(path)) or text[at] in "'\""
        if (plain or "/" in path or "." in path) and holds_media(path):
            return path, end
    return None


def _names_at(text: str, at: int, bare: bool = False) -> Iterator[tuple[str, int]]:
    """Names of files that exist and begin at `at`: as a word of a shell, then bare with blanks, the longest first.

    bare: a name with blanks may begin anyhow; otherwise it must look like a path, or begin the text.
    """
    if (word := shell_word(text, at)) and word[0]:
        for cut in _trimmed(text, at, word[1]):
            short = word if cut == word[1] else shell_word(text[:cut], at)
            if short and _is_file(short[0]):
                yield short[0], cut
    line = text[at : at + _LONGEST].split("\n", 1)[0]
    ends = [match.end() for match in re.finditer(r"\S+", line)]
    ends = ends[: _WORDS if bare or at == 0 or _PATHLIKE.match(text, at) else 1]
    for end in reversed(ends):
        for cut in _trimmed(text, at, at + end):
            if _is_file(text[at:cut]):
                yield text[at:cut], cut


def _trimmed(text: str, at: int, end: int) -> Iterator[int]:
    """Ends of a name, without one after another of the signs that may follow it."""
    yield end
    while end - 1 > at and text[end - 1] in _AFTER:
        end -= 1
        yield end


def _is_file(name: str) -> bool:
    if not 0 < len(name) <= _LONGEST:
        return False
    try:
        return located(name).is_file()
    except (OSError, ValueError, UsageError):
        return False


def holds_media(name: str) -> bool:
    """Whether an existing file holds media, by its content or, where it cannot be read, by its name."""
    try:
        with located(name).open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return bool(_SUFFIX.search(name))  # it is there and cannot be read: `reference` says why
    return sniffed(head) is not None or bool(_SUFFIX.search(name))


def _refuse_missing(text: str, at: int) -> None:
    """Raise UsageError for a missing file where the text clearly names one: by a path, or as its only word."""
    word = shell_word(text, at)
    plain = text[at:].split(maxsplit=1)[0]
    # in C:\\clips\\a.mp4 no backslash protects a letter; it is shown as it was typed
    name = (word[0] if word and not _DRIVE.match(plain) else plain).rstrip(_AFTER)
    alone = at == 0 and name[0:1].isalnum() and len(text.split()) == 1 and "://" not in name
    if _SUFFIX.search(name) and (alone or _PATHLIKE.match(name)) and not Path(name).name.startswith("."):
        reference(None, name)
