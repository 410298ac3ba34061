"""The frames that PLLaVA's published code chooses: in its demo, in its benchmarks and in training.

The three differ in rounding and in what they do with a video that has few frames; see `Sampling.rule`.
"""

from __future__ import annotations

import random


def chat(count: int, frames: int) -> list[int]:
    """Of `count` frames, those of the demo: half a segment cut to a whole number, then whole segments, rounded."""
    segment = (count - 1) / frames
    start = int(segment / 2)
    return [start + round(segment * i) for i in range(frames)]


def benchmark(
    last: int, frames: int, first: int = 0, fps: float = 0.0, bound: tuple[float, float] | None = None
) -> list[int]:
    """Those of the benchmarks: cut after the sum.

    Args:
        last, first: largest and smallest index there is.
        bound: seconds from and to, with `fps` frames a second.
    """
    start, end = (bound[0], bound[1]) if bound else (-100_000.0, 100_000.0)
    low, high = max(first, round(start * fps)), min(round(end * fps), last) if bound else last
    if not bound:
        low = first
    segment = (high - low) / frames
    return [int(low + segment / 2 + round(segment * i)) for i in range(frames)]


def intervals(count: int, frames: int) -> list[tuple[int, int]]:
    """First and last frame of each of `frames` runs; of `count` runs where there are fewer frames."""
    runs = min(frames, count)
    edges = [int(i * (count / runs)) if i < runs else count for i in range(runs + 1)]
    return [(edges[i], edges[i + 1] - 1) for i in range(runs)]


def training(count: int, frames: int, seed: int | None = None, offset: int | None = None) -> list[int]:
    """Those of training: one of each run, the last one again where the video is short.

    Args:
        seed: draw them, never the last of a run; where a run is too short for that, all are drawn from the whole video
            and sorted. Without it, the middle one of each run.
        offset: so many after the first one of each run instead.
    """
    runs = intervals(count, frames)
    if offset is not None:
        chosen = [first + offset for first, _ in runs]
    elif seed is None:
        chosen = [(first + last) // 2 for first, last in runs]
    else:
        chosen = _drawn(count, runs, random.Random(seed))
    return chosen + [chosen[-1]] * (frames - len(chosen))


def _drawn(count: int, runs: list[tuple[int, int]], draw: random.Random) -> list[int]:
    if any(last <= first for first, last in runs):
        return sorted(draw.sample(range(count), len(runs)))
    return [draw.randrange(first, last) for first, last in runs]


def per_second(count: int, fps: float, rate: float, most: int = -1) -> list[int]:
    """Those of training at `rate` frames a second of a video with `fps`; at most `most` where that is above zero."""
    seconds, step = count / fps, 1 / rate
    chosen = []
    i = 0
    while (moment := step / 2 + i * step) < seconds + step / 2:
        if (index := round(moment * fps)) < count:
            chosen.append(index)
        i += 1
    return chosen[:most] if most > 0 else chosen
