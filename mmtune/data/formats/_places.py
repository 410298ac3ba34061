"""Places of media in text: `<image>`, `<video>`, `<audio>`, `<points>`; which of them are places, and of what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mmtune.errors import DataError, Reason
from mmtune.types import Kind, Role

_PLACE = re.compile(r"<(image|video|audio|points?)>")
_TAG = re.compile(r"\s+(html5?\s+)?(tag|element)s?\b", re.IGNORECASE)


class Place(str):
    """A place for media; its text is the kind."""

    word: str
    """As it stands in text; empty for a part of a turn's content that is a medium and nothing else."""

    def __new__(cls, kind: str, word: str = "") -> Place:
        place = super().__new__(cls, kind)
        place.word = word
        return place


Said = tuple[Role, list[str], float]


def split(said: str) -> list[str]:
    """Text cut at its places."""
    pieces = _PLACE.split(said)
    return [
        Place("points" if piece == "point" else piece, f"<{piece}>") if number % 2 else piece
        for number, piece in enumerate(pieces)
        if piece
    ]


def count(turns: Iterable[Said]) -> Counter[str]:
    """Places by kind."""
    return Counter(part for _, parts, _ in turns for part in parts if isinstance(part, Place))


def settle(turns: list[Said], media: Mapping[Kind, int], where: str) -> list[Said]:
    """Turns whose places are those of the media that are there.

    Args:
        media: how many there are of each kind.

    Raises:
        DataError: placeholder_mismatch.
    """
    places = count(turns)
    if places["image"] and not media.get("image") and not places["video"] and media.get("video") == places["image"]:
        turns = [(role, [Place("video", part.word) if _is(part, "image") else part for part in parts], weight)
                 for role, parts, weight in turns]  # fmt: skip
        places = count(turns)
    for kind in sorted({*media, *places}):
        number, there = places[kind], media.get(kind, 0)  # type: ignore[call-overload]
        if number and not there and all(_in_passing(parts, kind) for _, parts, _ in turns):
            turns = [(role, _joined(parts, kind), weight) for role, parts, weight in turns]
        elif number != there and (number or not there):
            raise DataError(
                Reason.placeholder_mismatch,
                f"{where}: {number} times <{kind}> and {there} media of that kind",
                "as many places as media",
            )
    return turns


def _is(part: str, kind: str) -> bool:
    return isinstance(part, Place) and part == kind


def _in_passing(parts: Sequence[str], kind: str) -> bool:
    """Whether no place of a kind stands where media stand: in front of a turn, or as the last line of it.

    A closing tag in the turn says that all of them are tags, and so does "tag" or "element" behind one.
    """
    tags = any(not isinstance(part, Place) and f"</{kind}>" in part for part in parts)
    for number, part in enumerate(parts):
        if not _is(part, kind):
            continue
        before = "".join(one for one in parts[:number] if not isinstance(one, Place))
        after = "".join(one for one in parts[number + 1 :] if not isinstance(one, Place))
        ends = not before.strip() or (not after.strip() and before.rstrip(" \t").endswith("\n"))
        if not part.word or (ends and not tags and not _TAG.match(after)):  # type: ignore[attr-defined]
            return False
    return True


def _joined(parts: Sequence[str], kind: str) -> list[str]:
    """Parts in which the places of a kind are text, joined to what stands beside them."""
    joined: list[str] = []
    for part in parts:
        text = part.word if _is(part, kind) else part  # type: ignore[attr-defined]
        if joined and not isinstance(text, Place) and not isinstance(joined[-1], Place):
            joined[-1] += text
        else:
            joined.append(text)
    return joined
