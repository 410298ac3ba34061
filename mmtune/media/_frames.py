"""Which frames are shown when, and which of them a `Sampling` asks for. Whole numbers only, so nothing rounds, but in
the one rule whose published form does.

Every video backend is given the indices that come out of here; none of them chooses frames by itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

from mmtune.media import _pllava
from mmtune.media.base import Sampling

SLACK = 1.0
"""Seconds by which the end of a clip may exceed the item: ranges are often written in whole seconds."""


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


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of a timeline: frames `low` up to `high`, on screen from `begin` to `end` in units of the timeline."""

    low: int
    high: int
    begin: int
    end: int


def clip(line: Timeline, start: float | None, end: float | None) -> Clip:
    """The frames that are on screen from `start` to `end`, seconds from the first frame.

    An end that is after the last frame's by no more than `SLACK` seconds is that of the last frame.

    Raises ValueError: the timeline is shorter.
    """
    first = line.stamps[0]
    begin = first + round(Fraction(start or 0) / line.unit)
    stop = line.end if end is None else first + round(Fraction(end) / line.unit)
    if begin >= line.end or stop - line.end > SLACK / line.unit:
        raise ValueError("the clip ends behind the last frame")
    begin, stop = min(begin, line.end - 1), max(min(stop, line.end), begin + 1)
    return Clip(bisect_right(line.stamps, begin) - 1, bisect_left(line.stamps, stop), begin, stop)


def choose(line: Timeline, sampling: Sampling, part: Clip | None = None) -> list[int]:
    """The indices of the frames to show, F of them and never falling; see `Sampling.rule`.

    The frame on screen at time t is the last one that came at or before t. Of a part, the frames in it are all that
    there are: rules count them, and times run from its beginning to its end.
    """
    part = part or Clip(0, len(line.stamps), line.stamps[0], line.end)
    return [part.low + index for index in _choose(line, sampling, part)]


def _choose(line: Timeline, sampling: Sampling, part: Clip) -> list[int]:
    offsets = [stamp - part.begin for stamp in line.stamps[part.low : part.high]]
    span = part.end - part.begin
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


def format_times(seconds: Iterable[float]) -> list[str]:
    """Times as Video-LLaMA's prompt says them: seconds with one decimal."""
    return [str(round(second, 1)) for second in seconds]
