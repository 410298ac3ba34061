"""Evidence to the one line of text that a model reads, and frames to evidence.

The text comes from media, so the author of the media wrote it. Invisible characters are removed and its length is
limited here; `mmtune.prompt` and the tokenizer keep it inside its marks and free of control tokens.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mmtune.experts.base import Evidence, ExpertConfig
from mmtune.types import Quote

CUT = " ..."
"""Ends a text that was longer than allowed."""
BETWEEN = " / "
"""Between two pieces of evidence."""
_ALIKE = 0.5
"""Share of letters in common from which two readings of one place are taken for one text."""
_OVERLAP = 0.3
"""Intersection over union from which two boxes are taken for one place."""


def quote(label: str, evidence: Iterable[Evidence], config: ExpertConfig, cut: bool = False) -> Quote | None:
    """Evidence as a quote, or None when nothing is left of it.

    Args:
        label: who says it.
        cut: whether the expert found more than the limit allows.
    """
    words: dict[str, str] = {}
    for one in evidence:
        text = plain(one.text)
        if not text or (one.score is not None and one.score < config.min_score):
            continue
        times = dict.fromkeys(f"{time:.1f}" for time in one.span or ())
        when = f" ({'-'.join(times)} s)" if times else ""
        words.setdefault(text.casefold() + when, text + when)
    if not words:
        return None
    text = BETWEEN.join(words.values())
    if len(text) > config.max_chars:
        text, cut = text[: config.max_chars - len(CUT)].rstrip(), True
    return Quote(label, text + CUT if cut else text)


def plain(text: str) -> str:
    """One line of visible text: blanks for breaks and control characters, nothing that hides or turns letters."""
    kept = []
    for letter in text:
        kind = unicodedata.category(letter)
        if kind in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif kind not in ("Cf", "Cs", "Co", "Cn"):
            kept.append(letter)
    return " ".join("".join(kept).split())


def over_frames(readings: Sequence[tuple[float | None, Sequence[Evidence]]]) -> list[Evidence]:
    """Evidence of single frames as evidence of the whole: repeated findings are merged.

    Two findings are one when their texts are equal, or when they are at one place and are alike, as two readings of one
    sign are; the reading with the larger sum of scores is kept. What most frames show comes first. What every frame
    shows has no span, all else lasts from the first to the last frame that shows it.

    Args:
        readings: for each frame its time in seconds (none for a still picture) and what was found.
    """
    groups: list[list[tuple[int, Evidence]]] = []
    for index, (_, found) in enumerate(readings):
        for one in found:
            home = next((group for group in groups if any(_same(one, other) for _, other in group)), None)
            if home is None:
                groups.append(home := [])
            home.append((index, one))
    result = []
    for group in sorted(groups, key=lambda group: -len({index for index, _ in group})):  # stable: reading order stays
        sums: dict[str, float] = {}
        for _, one in group:
            key = plain(one.text).casefold()
            sums[key] = sums.get(key, 0.0) + (1.0 if one.score is None else one.score)
        best = max(sums, key=lambda key: sums[key])
        seen = sorted({index for index, _ in group})
        picked = max((one for _, one in group if plain(one.text).casefold() == best), key=lambda one: one.score or 0.0)
        times = [time for index in seen if (time := readings[index][0]) is not None]
        span = (min(times), max(times)) if times and len(seen) < len(readings) else None
        result.append(replace(picked, span=span))
    return result


def _same(one: Evidence, other: Evidence) -> bool:
    left, right = plain(one.text).casefold(), plain(other.text).casefold()
    if left == right:
        return True
    if one.box is None or other.box is None or _iou(one.box, other.box) < _OVERLAP:
        return False
    return difflib.SequenceMatcher(None, left, right, autojunk=False).ratio() >= _ALIKE


def _iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (area - both)
