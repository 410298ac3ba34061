"""Placeholders of media in text: `<image>`, `<video>`, `<audio>`, `<points>`; which of them are placeholders, and of
what.

The words of other tools (`<ImageHere>`, `<|image_pad|>`, `<image_1>`, ...) are places, too, in a record that has
media of that kind and none of these four for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmtune.errors import DataError, Reason
from mmtune.types import Kind, Role

_PLACEHOLDER = re.compile(r"<(image|video|audio|points?)>")
_OTHERS: dict[str, re.Pattern[str]] = {
    kind: re.compile(
        "|".join((*words, rf"<\|{kind}\|>", rf"<\|?{kind}[_ ]?(?P<number>\d+)\|?>", rf"<{kind}_placeholder>"))
    )
    for kind, words in {
        "image": (
            r"<(?:Img|Image)><ImageHere></(?:Img|Image)>", "<ImageHere>", "<IMG_CONTEXT>", "<Image>", "<IMAGE>",
            r"(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?",
        ),
        "video": (
            r"<Video><(?:Video|Image)Here></Video>", "<VideoHere>", "<Video>", "<VIDEO>",
            r"(?:<\|vision_start\|>)?<\|video_pad\|>(?:<\|vision_end\|>)?",
        ),
        "audio": (
            r"<(?:Audio|Speech)><(?:Audio|Speech)Here></(?:Audio|Speech)>", "<(?:Audio|Speech)Here>", "<Audio>",
            r"(?:<\|audio_bos\|>)?<\|(?:AUDIO|audio_pad)\|>(?:<\|audio_eos\|>)?", "<AUDIO>", "<speech>", "<sound>",
        ),
    }.items()
}  # fmt: skip
"""Kind to the words that other tools have for a place of it."""
_TAG = re.compile(r"\s+(html5?\s+)?(tag|element)s?\b", re.IGNORECASE)


class Placeholder(str):
    """A placeholder of media; its text is the kind."""

    word: str
    """As it stands in text; empty for a part of a turn's content that is a medium and nothing else."""

    index: Any = None
    """Which of the record's media of that kind, from 0, a part of a turn says that it is."""

    def __new__(cls, kind: str, word: str = "") -> Placeholder:
        placeholder = super().__new__(cls, kind)
        placeholder.word = word
        return placeholder


Said = tuple[Role, list[str], float]


def split(said: str) -> list[str]:
    """Text split at its placeholders."""
    pieces = _PLACEHOLDER.split(said)
    return [
        Placeholder("points" if piece == "point" else piece, f"<{piece}>") if number % 2 else piece
        for number, piece in enumerate(pieces)
        if piece
    ]


def count(turns: Iterable[Said]) -> Counter[str]:
    """Placeholders by kind."""
    return Counter(part for _, parts, _ in turns for part in parts if isinstance(part, Placeholder))


def settle(turns: list[Said], media: Mapping[Kind, int], where: str) -> list[Said]:
    """Turns whose placeholders are those of the media that are there.

    Args:
        media: how many there are of each kind.

    Raises:
        DataError: placeholder_mismatch.
    """
    _check_order(turns, where)
    placeholders = count(turns)
    if (
        placeholders["image"]
        and not media.get("image")
        and not placeholders["video"]
        and media.get("video") == placeholders["image"]
    ):
        turns = [(role, [Placeholder("video", part.word) if _is(part, "image") else part for part in parts], weight)
                 for role, parts, weight in turns]  # fmt: skip
        placeholders = count(turns)
    for kind in sorted(media.keys() & _OTHERS.keys() - placeholders.keys()):
        turns = _others(turns, kind, media, where)
    placeholders = count(turns)
    for kind in sorted({*media, *placeholders}):
        number, there = placeholders[kind], media.get(kind, 0)  # type: ignore[call-overload]
        if number and not there and all(_in_passing(parts, kind) for _, parts, _ in turns):
            turns = [(role, _joined(parts, kind), weight) for role, parts, weight in turns]
        elif number != there and (number or not there):
            raise DataError(
                Reason.placeholder_mismatch,
                f"{where}: {number} times <{kind}> and {there} media of that kind",
                "as many placeholders as media",
            )
    return turns


def _check_order(turns: list[Said], where: str) -> None:
    """Refuse parts that take media in another order than theirs. Raises DataError placeholder_mismatch."""
    passed: Counter[str] = Counter()
    for placeholder in (part for _, parts, _ in turns for part in parts if isinstance(part, Placeholder)):
        if isinstance(placeholder.index, int) and placeholder.index != passed[placeholder]:
            seen = f"{where}: place {passed[placeholder]} of {placeholder} has the index {placeholder.index}"
            raise DataError(Reason.placeholder_mismatch, seen, "media in the order in which they are named")
        passed[placeholder] += 1


def _others(turns: list[Said], kind: Kind, media: Mapping[Kind, int], where: str) -> list[Said]:
    """Turns in which the words of other tools are places of a kind. Raises DataError placeholder_mismatch."""
    known = [_OTHERS[kind]]
    if kind == "video" and not media.get("image"):  # as `<image>` is one of a video there
        known.append(_OTHERS["image"])
    for words in known:
        found = [
            word for role, parts, _ in turns if role != "assistant" for part in parts for word in _words(words, part)
        ]
        numbers = [int(word["number"]) for word in found if word["number"]]
        if not found:
            continue
        if len(found) != media[kind] or (numbers and numbers not in _steps(len(found))):
            seen = f"{where}: {', '.join(word[0] for word in found)[:120]} and {media[kind]} media of that kind"
            raise DataError(Reason.placeholder_mismatch, seen, "as many placeholders as media, in their order")
        return [
            (role, _cut(parts, words, kind) if role != "assistant" else parts, weight) for role, parts, weight in turns
        ]
    return turns


def _steps(count: int) -> tuple[list[int], list[int]]:
    return list(range(count)), list(range(1, count + 1))


def _words(words: re.Pattern[str], part: str) -> list[re.Match[str]]:
    return [] if isinstance(part, Placeholder) else list(words.finditer(part))


def _cut(parts: Sequence[str], words: re.Pattern[str], kind: Kind) -> list[str]:
    """Parts, their texts cut at some words, which become places."""
    done: list[str] = []
    for part in parts:
        end = 0
        for word in _words(words, part):
            done += [part[end : word.start()]] * (word.start() > end)
            done.append(Placeholder(kind, word[0]))
            end = word.end()
        done += [part[end:] if end else part] * (end < len(part) or isinstance(part, Placeholder))
    return done


def _is(part: str, kind: str) -> bool:
    return isinstance(part, Placeholder) and part == kind


def _in_passing(parts: Sequence[str], kind: str) -> bool:
    """Whether no placeholder of a kind is where media are: before a turn, or as the last line of it.

    A closing tag in the turn says that all of them are tags, and so does "tag" or "element" after one.
    """
    tags = any(not isinstance(part, Placeholder) and f"</{kind}>" in part for part in parts)
    for number, part in enumerate(parts):
        if not _is(part, kind):
            continue
        before = "".join(one for one in parts[:number] if not isinstance(one, Placeholder))
        after = "".join(one for one in parts[number + 1 :] if not isinstance(one, Placeholder))
        ends = not before.strip() or (not after.strip() and before.rstrip(" \t").endswith("\n"))
        if not part.word or (ends and not tags and not _TAG.match(after)):  # type: ignore[attr-defined]
            return False
    return True


def _joined(parts: Sequence[str], kind: str) -> list[str]:
    """Parts in which the places of a kind are text, joined to what stands beside them."""
    joined: list[str] = []
    for part in parts:
        text = part.word if _is(part, kind) else part  # type: ignore[attr-defined]
        if joined and not isinstance(text, Placeholder) and not isinstance(joined[-1], Placeholder):
            joined[-1] += text
        else:
            joined.append(text)
    return joined
