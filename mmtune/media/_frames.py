"""Which frames are shown when, and which of them a `Sampling` asks for. Whole numbers only, so nothing rounds, but in
the one rule whose published form does.

Every video backend is given the indices that come out of here; none of them chooses frames by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

from mmtune.media import _pllava
from mmtune.media.base import Sampling


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each of V frames comes on screen, in presentation order."""

    stamps: list[int]
    """Presentation timestamps, rising, in units of `unit`; the container's own, not shifted."""
    end: int
    """When the last frame leaves the screen."""
    unit: Fraction
    """Seconds per unit."""

    @property
    def seconds(self) -> float:
        """From the first frame's beginning to the last one's end."""
        return float((self.end - self.stamps[0]) * self.unit)

    def at(self, index: int) -> float:
        """Seconds from the first frame to frame `index`."""
        return float((self.stamps[index] - self.stamps[0]) * self.unit)


def timeline(stamps: list[int], durations: list[int], unit: Fraction) -> Timeline:
    """Build a timeline from the timestamps and durations of the frames in any order; repeated stamps count once.

    The last frame stays for its own duration, or where the container gives none for the median gap.
    """
    lasts = dict(zip(stamps, durations, strict=True))
    order = sorted(lasts)
    last = lasts[order[-1]]
    if last <= 0:
        gaps = sorted(b - a for a, b in pairwise(order))
        last = gaps[len(gaps) // 2] if gaps else 1
    return Timeline(order, order[-1] + last, unit)


def choose(line: Timeline, sampling: Sampling) -> list[int]:
    """The indices of the frames to show, F of them and never falling; see `Sampling.rule`.

    The frame on screen at time t is the last one that came at or before t.
    """
    first = line.stamps[0]
    offsets = [stamp - first for stamp in line.stamps]
    span = line.end - first
    if sampling.seconds is not None:
        span = max(1, min(span, int(Fraction(sampling.seconds) / line.unit)))
        offsets = offsets[: max(1, bisect_right(offsets, span - 1))]
    count, frames = len(offsets), sampling.frames
    if sampling.rule == "first":
        return [i * count // frames for i in range(frames)]
    if sampling.rule == "middle":
        return [(2 * i + 1) * count // (2 * frames) for i in range(frames)]
    if sampling.rule == "video_llama":
        # One more than asked, which the published code gives at some lengths, would have no place in a position table.
        return video_llama(count, frames)[:frames]
    if sampling.rule == "pllava":
        return _pllava.chat(count, frames)
    if sampling.rule == "pllava_benchmark":
        return _pllava.benchmark(count - 1, frames)
    if sampling.rule == "pllava_train":
        return _pllava.training(count, frames, sampling.seed)
    if sampling.rule == "fps":
        wanted = Fraction(span) * line.unit * Fraction(sampling.fps or 0)
        frames = max(1, min(frames, int(wanted + Fraction(1, 2))))
    return [bisect_right(offsets, (2 * i + 1) * span // (2 * frames)) - 1 for i in range(frames)]


def video_llama(count: int, frames: int) -> list[int]:
    """The indices that Video-LLaMA's uniform sampling gives for `count` frames, as published.

    Steps of count / n in floating point, n at most the number of frames there are. Rounding can give n + 1 indices,
    the last of them out of range (only where n is no power of two).
    """
    step = count / min(frames, count)
    return [int(i * step) for i in range(ceil(count / step))]


def spoken(seconds: Iterable[float]) -> list[str]:
    """Times as Video-LLaMA's prompt says them: seconds with one decimal."""
    return [str(round(second, 1)) for second in seconds]
