"""Blocks of decoded sound on one timeline: silence where nothing was sent, and no more than a window of it is kept."""

from __future__ import annotations

import numpy as np

LATE = 0.04
"""Seconds by which a block may come late before there is a gap before it. Live recorders stamp their blocks some
milliseconds off; what is not filled adds up, so times are never off by more."""


_PIECE = 1 << 23
"""Values of a piece of memory: so large (32 MB) that it goes back to the system when it is given up. What of it is
never written takes none."""


class Full(Exception):
    """More samples than may be kept."""


class Track:
    """Samples in the order in which they are put, from `begin` up to `end`.

    Args:
        rate: samples per second.
        channels: of every block.
        begin, end: the samples to keep, counted from the zero of the timeline; none for no bound.
        most: samples that may be kept; silence counts as much as sound.

    Attributes:
        head: where the next sample comes, counted from the zero of the timeline.
        silent: samples of silence put in.
    """

    def __init__(self, rate: int, channels: int, begin: int | None, end: int | None, most: int) -> None:
        self.rate, self.channels, self.most = rate, channels, most
        self.begin, self.end = begin, end
        self._step = _PIECE // channels
        self.head, self.silent, self.kept = 0, 0, 0
        self._loose = True  # the next block is placed by its time, not after the last one
        self._pieces: list[np.ndarray] = []
        self._used = 0  # samples written into pieces

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted."""
        return self.end is not None and self.head >= self.end

    def put(self, block: np.ndarray, at: int | None) -> None:
        """A block [channels,samples] whose first sample is number `at`; None places it right after the last block.

        Raises Full.
        """
        if at is not None:
            late, slack = at - self.head, LATE * self.rate
            if self._loose and (late < -slack if self.head == 0 else late <= slack):
                self.head = at
            self._loose = False
            if late > slack:
                self._silence(at - self.head)
        self._keep(block)

    def skip(self, head: int) -> None:
        """Go on to sample `head` without any sound, which must be before the window."""
        self.head, self._loose = max(head, self.head), True

    def stack(self) -> np.ndarray:
        """float32 [channels,samples], to be asked for once: pieces are given up while they are copied."""
        if len(self._pieces) == 1:
            return self._pieces.pop()[:, : self.kept].copy()
        whole, at = np.empty((self.channels, self.kept), np.float32), 0
        while self._pieces:
            piece = self._pieces.pop(0)[:, : self.kept - at]
            whole[:, at : at + piece.shape[1]] = piece
            at += piece.shape[1]
        return whole

    def _silence(self, length: int) -> None:
        low, high = self._window(length)
        self._count(high - low)
        self.silent += high - low
        self._add(None, high - low)
        self.head += length

    def _keep(self, block: np.ndarray) -> None:
        low, high = self._window(block.shape[1])
        self._count(high - low)
        self._add(block[:, low:high], high - low)
        self.head += block.shape[1]

    def _add(self, block: np.ndarray | None, length: int) -> None:
        """Append a block, or so much silence."""
        done = 0
        while done < length:
            at = self._used % self._step
            if at == 0:
                self._pieces.append(np.empty((self.channels, self._step), np.float32))
            size = min(length - done, self._step - at)
            self._pieces[-1][:, at : at + size] = 0.0 if block is None else block[:, done : done + size]
            done += size
            self._used += size

    def _window(self, length: int) -> tuple[int, int]:
        """Which of the next `length` samples are wanted."""
        if self.begin is None and self.end is None:
            return 0, length
        low = 0 if self.begin is None else min(max(0, self.begin - self.head), length)
        high = length if self.end is None else max(low, min(length, self.end - self.head))
        return low, high

    def _count(self, more: int) -> None:
        self.kept += more
        if self.kept > self.most:
            raise Full
