"""Sound from bytes to float32 [channels,samples] in -1..1: WAV, FLAC, OGG, MP3, M4A, or the sound of a video.

Three states stay apart: sound is there; the file has none (no_audio_stream); the file has some that cannot be read
(unreadable_audio, audio_limits). Silence is never put in the place of a failure.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import torch

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import _boxes, _ogg, _tags, _wave
from mmtune.media._container import is_cover, is_whole_matroska, is_whole_riff, opened, pick, promised_seconds
from mmtune.media._frames import SLACK
from mmtune.media._resample import resample
from mmtune.media._track import LATE, Full, Track
from mmtune.media._watch import Watch
from mmtune.media.base import Limits, Sampling, Span, outside, refusing
from mmtune.types import Media

_PEAK = 16.0
"""Lossy codecs overshoot 1 and are clipped there; values far above it are stored on another scale and refused."""

_SCALES = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}
"""Sample format to (middle, range): value = (stored - middle) / range."""


_STAMPED = frozenset({"mp4", "m4a", "matroska", "ogg"})
"""Formats whose timestamps are written in the file. Those of the others are counted by the library, gaps or not."""

_FRAME = 1 << 20
"""Most samples of a frame in each channel. An encoder puts up to 65,535 into one; headers may claim sixteen million,
which take a decoder as much memory as hours of sound do."""

_PREROLL = 1.0
"""Seconds of sound decoded before a clip: every codec in use has come to its right values by then."""


def decode(data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str, span: Span = (None, None)) -> Media:
    """`data` of format `name` to Media with float32 [channels,samples] in -1..1 at `sampling.rate`.

    All channels are kept. Where the timestamps say that nothing was sent, there is silence; also before a sound that
    begins later than the file. Sound before the first frame beside it is left out. With `sampling.seconds` only
    so much from the start is decoded.

    Args:
        span: the part wanted, seconds from the first frame where there are pictures, else from the file's beginning.

    Raises:
        MediaError: no_audio_stream, audio_limits, bad_range, or unreadable_audio for everything else.
    """
    notes: list[Note] = []
    if name == "wav":
        data = _whole_wave(data, notes, limits, origin)
    if name == "flac":
        data = _tags.plain_flac(data)
    if name in ("mp4", "m4a"):
        _boxes.check(data, limits, Reason.audio_limits, origin)
    _tags.check(data, name, Reason.audio_limits, origin)
    watch = Watch(limits, Reason.audio_limits, origin)
    with refusing(Reason.unreadable_audio, origin), opened(data, name, watch) as container:
        stream = pick(container, "audio", origin)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        _check_header(rate, channels, limits, origin)
        promised = promised_seconds(container, stream)
        begin, end = _window(sampling, span, rate)
        if end is None and begin is None and promised is not None and promised > limits.audio_seconds:
            raise limits.refusal("audio_seconds", Reason.audio_limits, f"{origin}: {promised:.0f} seconds")
        most = limits.audio_values // channels
        if end is None:
            most = min(most, int(limits.audio_seconds * rate))
        clock = _Clock(container, stream, name, data)
        track = Track(rate, channels, 0 if clock.beside and begin is None else begin, end, most)
        _fill(track, container, stream, clock, limits, watch, origin)
        if span == (None, None) and not track.done and promised is not None:
            _check_length(track, promised - max(0.0, clock.zero), name, data, limits, origin)
        _check_range(track, span, origin, notes)
        wave = track.stack()
        _check_values(wave, origin)
        sound = resample(torch.from_numpy(wave), rate, sampling.rate).clamp_(-1.0, 1.0)
    if track.silent:
        notes.append(Note.gaps_filled)
    if clock.early:
        notes.append(Note.sound_before_pictures)
    return Media("audio", sound.contiguous(), rate=sampling.rate, origin=origin, notes=tuple(notes))


def _whole_wave(data: bytes, notes: list[Note], limits: Limits, origin: str) -> bytes:
    """A WAV whose header knows how long it is. Raises MediaError where much of what it promises is missing."""
    wave = _wave.find(data)
    if wave is None:
        raise MediaError(Reason.unreadable_audio, f"{origin}: a WAV without sound", "a chunk called data")
    if wave.promised is None:
        notes.append(Note.open_length)
        return _wave.plain(data, wave)
    have = len(data) - wave.start
    if have < limits.complete * wave.promised:
        raise MediaError(
            Reason.unreadable_audio, f"{origin}: {have} bytes of {wave.promised}", "a whole file (limit complete)"
        )
    return _wave.plain(data, wave)


def _window(sampling: Sampling, span: Span, rate: int) -> tuple[int | None, int | None]:
    """The samples wanted, first and the one after the last; None for no bound."""
    begin = None if span[0] is None else round(span[0] * rate)
    end = None if span[1] is None else round(span[1] * rate)
    if sampling.seconds is not None:
        short = (begin or 0) + max(1, round(sampling.seconds * rate))
        end = short if end is None else min(end, short)
    if end is not None:
        end = max(end, (begin or 0) + 1)
    return begin, end


def _check_range(track: Track, span: Span, origin: str, notes: list[Note]) -> None:
    """Refuse a clip that the sound does not hold; an end after the sound's by rounding is that of the sound."""
    have, (start, end) = track.head / track.rate, span
    late = (start or 0) >= have or (end is not None and not track.done and end - have > SLACK)
    if span != (None, None) and late:
        raise outside(origin, span, have)
    if end is not None and not track.done and end > have:
        notes.append(Note.range_clamped)


def _check_header(rate: int, channels: int, limits: Limits, origin: str) -> None:
    if not rate or not channels:
        raise MediaError(Reason.unreadable_audio, f"{origin}: {rate} Hz, {channels} channels", "both above 0")
    if not limits.min_rate <= rate <= limits.max_rate:
        name = "min_rate" if rate < limits.min_rate else "max_rate"
        raise limits.refusal(name, Reason.audio_limits, f"{origin}: {rate} Hz")
    if channels > limits.channels:
        raise limits.refusal("channels", Reason.audio_limits, f"{origin}: {channels} channels")


def _fill(track: Track, container: Any, stream: Any, clock: _Clock, limits: Limits, watch: Watch, origin: str) -> None:
    """Decode what the track wants. Raises MediaError."""
    failed = packets = 0
    context = stream.codec_context
    context.thread_count = 1
    if not context.name.startswith("pcm_"):  # which has a value for each byte of a packet or less
        context.options = {**context.options, "max_samples": str(_FRAME)}
    early = -1.0 if track.begin is None else track.begin / track.rate - _PREROLL
    try:
        for packet in container.demux(stream):
            over = clock.tick(packet)
            if over is not None and over < early:
                track.skip(round(over * track.rate))
                continue
            packets += 1
            if packets > limits.packets:
                raise limits.refusal("packets", Reason.audio_limits, f"{origin}: more than {limits.packets} packets")
            try:
                frames = context.decode(packet if packet.size else None)
            except av.error.InvalidDataError:
                failed += 1
                continue
            before = track.kept
            for frame in frames:
                track.put(_block(frame, track, origin), clock.at(frame, track.rate))
            watch.keep(4 * track.channels * (track.kept - before))
            if track.done or not packet.size:
                break
            watch.tick()
        if clock.last is not None and not track.done:  # nothing was sent until the last packet's end
            track.put(np.zeros((track.channels, 0), np.float32), round(clock.last * track.rate))
    except Full as error:
        seen = f"{origin}: more than {track.most} samples in {track.channels} channels"
        longer = track.most < limits.audio_values // track.channels
        raise limits.refusal("audio_seconds" if longer else "audio_values", Reason.audio_limits, seen) from error
    if failed > (1 - limits.complete) * packets or not track.head:
        raise MediaError(
            Reason.unreadable_audio, f"{origin}: {failed} of {packets} packets fail, {track.head} samples",
            "a whole file (limit complete)",
        )  # fmt: skip


class _Clock:
    """When the sound of a packet is due, by the timestamps of the file; nothing where it has none.

    Attributes:
        zero: the timestamp that counts as 0, seconds.
        beside: whether there are pictures beside the sound.
        early: whether sound is due before the first of them.
        last: when the sound of the last packet is over, seconds.
    """

    def __init__(self, container: Any, stream: Any, name: str, data: bytes) -> None:
        self.stamped = name in _STAMPED
        self.zero, self.beside = _zero(container, stream) if self.stamped else (0.0, False)
        self.early = False
        self.last: float | None = None
        opus = name == "ogg" and stream.codec_context.name in ("opus", "libopus")
        self._pages = _ogg.opus_starts(data) if opus else []
        self._number, self._due = -1, 0.0
        self._unit = float(stream.time_base)  # fractions are exact, and slow

    def tick(self, packet: Any) -> float | None:
        """Note the next packet; returns the end of its sound in seconds, or None if that is unknown."""
        self._number += 1
        if not self.stamped or not packet.size or packet.pts is None:
            return None
        stamp = begin = packet.pts * self._unit
        if self._number < len(self._pages):
            size, start = self._pages[self._number]
            if size != packet.size:  # the library sees other packets than the pages say
                self._pages = []
            else:
                if not self._number:  # its first samples are the encoder's own and are not heard
                    self.zero -= begin
                begin = start / 48000
        self._due = begin - stamp
        self.early |= self.beside and begin - self.zero < -LATE
        self.last = begin + (packet.duration or 0) * self._unit - self.zero
        return self.last

    def at(self, frame: Any, rate: int) -> int | None:
        """The sample at which a decoded frame begins; None where that is not known."""
        if not self.stamped or frame.pts is None:
            return None
        return round((frame.pts * self._unit + self._due - self.zero) * rate)


def _zero(container: Any, stream: Any) -> tuple[float, bool]:
    """The timestamp that counts as 0, seconds: that of the first frame beside the sound, else of the file's beginning;
    and whether there is such a frame.

    A sound begins at once where its times do not: in OGG, where they only count what the encoder put in front, and in
    a piece of a longer stream.
    """
    pictures = [s for s in container.streams if s.type == "video" and not is_cover(s) and s.start_time is not None]
    if pictures:
        return min(float(one.start_time * one.time_base) for one in pictures), True
    first = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    apart = container.format.name == "ogg" or abs(first) <= LATE or first > _ogg.ABRUPT
    return first if apart else 0.0, False


def _block(frame: Any, track: Track, origin: str) -> np.ndarray:
    """float32 [channels,samples] of one decoded frame. Raises MediaError where its rate or layout is another."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if frame.sample_rate != track.rate or values.shape[0] != track.channels:
        raise MediaError(
            Reason.unreadable_audio,
            f"{origin}: {frame.sample_rate} Hz and {values.shape[0]} channels after {track.rate} Hz and "
            f"{track.channels}",
            "one rate and layout throughout",
        )
    kind = frame.format.name.removesuffix("p")
    if kind in _SCALES:
        middle, scale = _SCALES[kind]
        values = (values.astype(np.float32) - np.float32(middle)) * np.float32(1 / scale)  # exact: a power of two
    return values.astype(np.float32, copy=False)


def _check_length(track: Track, promised: float, name: str, data: bytes, limits: Limits, origin: str) -> None:
    """Compare with the header. MP3 gives only estimates, OGG the place of its last page: those promise nothing.

    A Matroska file that is there to its last byte sent nothing at its end; an AVI has a sound that began late.
    """
    have = track.head / track.rate
    if name in ("mp3", "ogg") or have >= limits.complete * promised or (name == "avi" and is_whole_riff(data)):
        return
    if name == "matroska" and is_whole_matroska(data):
        try:
            track.put(np.zeros((track.channels, 0), np.float32), round(promised * track.rate))
        except Full as error:
            raise limits.refusal("audio_seconds", Reason.audio_limits, f"{origin}: {promised:.0f} seconds") from error
        return
    raise MediaError(
        Reason.unreadable_audio,
        f"{origin}: {have:.2f} seconds of {promised:.2f}",
        f"at least {limits.complete:.0%} of what the header promises (limit complete)",
    )


def _check_values(wave: np.ndarray, origin: str) -> None:
    """Refuse NaN, infinity, and values that are not on a scale of -1..1."""
    peak = max(abs(float(wave.min())), abs(float(wave.max())))
    if not peak <= _PEAK:  # NaN compares false
        raise MediaError(
            Reason.unreadable_audio,
            f"{origin}: values up to {peak:g}",
            "samples in -1..1",
            "store the sound as integers, or scale its floats",
        )
