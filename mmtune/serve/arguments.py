"""The arguments of `mmtune chat`: a run, media with ranges, a question."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmtune.errors import UsageError
from mmtune.serve import drops, time_ranges
from mmtune.serve.references import located, reference
from mmtune.types import Kind, MediaRef

_SENTENCE = "?!.,:;\u2026\uff1f\u3002"
"""A word that ends so is a question, whatever is in it: `true/false?`"""


@dataclass
class Words:
    """The words, told apart."""

    run: Path | None = None
    media: list[MediaRef] = field(default_factory=list)
    question: str | None = None
    unread: list[str] = field(default_factory=list)
    """Addresses of media in the question, which are not read."""
    note: str = ""
    """What may have been meant otherwise."""


def parse(words: list[str], named: list[tuple[Kind | None, str]]) -> Words:
    """Tell the words apart: [RUN] [FILE [RANGE]]... [QUESTION].

    Args:
        named: media given by options, as kind and path; a range that stands first belongs to the only one of them.

    Raises:
        UsageError: a file that does not exist or holds no media, several questions, or a path that looks like that of
        a run but is none.
    """
    words, found = list(words), Words(media=[_named(kind, path) for kind, path in named])
    if words and _is_run(words[0]):
        found.run = Path(words.pop(0)).expanduser()
    alone = len(words) == 1
    while words:
        if _range_of_last(words[0], found.media):
            span = time_ranges.leading(words.pop(0))[0]
            assert span is not None
            found.media[-1] = _cut(found.media[-1], span)
        elif _is_medium(words[0]) or _is_clip(words[0]):
            found.media.append(_named(None, words.pop(0)))
        else:
            break
    if not words:
        return found
    found.note = _refuse_path(words[0], alone and found.run is None)
    if len(words) > 1:
        _refuse_words(words, found)
    typed = drops.media_in(words[0])
    found.media += [ref for ref in typed.media if ref not in found.media]
    found.question = typed.question or (None if typed.media else words[0])
    found.unread = typed.unread
    return found


def _named(kind: Kind | None, path: str) -> MediaRef:
    """A medium of an option; a range may follow the path in the same word."""
    if " " in path and path != "-" and not _exists(path):
        head, _, tail = path.rpartition(" ")
        span, rest = time_ranges.leading(tail)
        if span and not rest:
            return reference(kind, head.rstrip(), span)
    return reference(kind, path)


def _is_clip(word: str) -> bool:
    """A file with its range in one word, as `clip.mp4 0:10-0:20` in quotes."""
    head, blank, tail = word.rpartition(" ")
    return bool(blank) and not _exists(word) and _is_medium(head.rstrip()) and time_ranges.is_range(tail)


def _range_of_last(word: str, media: list[MediaRef]) -> bool:
    if not media or media[-1].kind not in ("video", "audio") or media[-1].range or _exists(word):
        return False
    return time_ranges.is_range(word)


def _cut(ref: MediaRef, span: time_ranges.Span) -> MediaRef:
    return MediaRef(ref.kind, ref.source, ref.origin, span[0], span[1])


def _is_medium(word: str) -> bool:
    """A file that is there, or an address; a word that only happens to be the name of some file is a question."""
    if any(letter.isspace() for letter in word) and not _exists(word):
        return False
    return "://" in word or (_exists(word) and ("/" in word or "." in word or drops.holds_media(word)))


def _exists(word: str) -> bool:
    try:
        return located(word).is_file()
    except (OSError, ValueError, UsageError):  # a question longer than a file name may be
        return False


def _is_run(word: str) -> bool:
    try:
        return bool(word) and (Path(word).expanduser() / "recipe.yaml").is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _refuse_path(word: str, alone: bool) -> str:
    """Refuse a question that is a folder, or a path that does not exist. Returns a note on one that could be
    either, as `yes/no`: a question where it is alone and not even its first folder is there."""
    try:
        path = Path(word).expanduser()
        folder, begun = bool(word) and path.is_dir(), Path(word.partition("/")[0] or "/").exists()
    except (OSError, ValueError, RuntimeError):
        return ""
    slashed = "/" in word and not any(letter.isspace() for letter in word) and word[-1] not in _SENTENCE
    if not (folder or slashed):
        return ""
    if drops.names_media(word):
        reference(None, word)
    if alone and not folder and not begun and word[0] != "~":
        return f"{word} is no file and no run, so it is taken as a question"
    raise UsageError(
        seen=f"{word} is not the folder of a run" + (": it has no recipe.yaml" if folder else ""),
        expected="mmtune chat [RUN] [FILE]... [QUESTION], with one question",
        hint='a question of one word ends with a sign: "yes/no?"' if alone else "put the question in quotes",
    )


def _refuse_words(words: list[str], found: Words) -> None:
    if drops.names_media(words[0]):
        reference(None, words[0])
    if found.run is None and not found.media:
        raise UsageError(
            seen=f"{words[0]} is not the folder of a run, and no file",
            expected="mmtune chat [RUN] [FILE]... [QUESTION], with one question",
            hint="put a question of several words in quotes",
        )
    raise UsageError(
        seen=f"{len(words)} words where one question may stand",
        expected="one question",
        hint=f'quotes around it: "{" ".join(words)}"',
    )
