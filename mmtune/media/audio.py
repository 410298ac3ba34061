"""Sound from bytes to float32 [channels,samples] in -1..1: WAV, FLAC, OGG, MP3, M4A, or the sound of a video.

Three states stay apart: sound is there; the file has none (no_audio_stream); the file has some that cannot be read
(unreadable_audio, audio_limits). Silence is never put in the place of a failure.
"""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import av
import numpy as np
import torch

from mmtune.errors import MediaError, Reason
from mmtune.media._container import is_cover, opened, pick, promised_seconds
from mmtune.media._frames import SLACK
from mmtune.media._resample import resample
from mmtune.media._track import LATE, Full, Track
from mmtune.media.base import Limits, Sampling, Span, outside, refusing
from mmtune.types import Media

_PEAK = 16.0
"""Lossy codecs overshoot 1 and are clipped there; values far above it are stored on another scale and refused."""

_SCALES = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}
"""Sample format to (middle, range): value = (stored - middle) / range."""


_STAMPED = frozenset({"mp4", "m4a", "matroska", "ogg"})
"""Formats whose timestamps are written in the file. Those of the others are counted by the library, gaps or not."""

_PREROLL = 1.0
"""Seconds of sound decoded in front of a clip: every codec in use has come to its right values by then."""

_ABRUPT = 60.0
"""A sound without pictures that begins later than this, seconds, is a piece of a longer stream and begins at once."""


def decode(data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str, span: Span = (None, None)) -> Media:
    """`data` of format `name` to Media with float32 [channels,samples] in -1..1 at `sampling.rate`.

    All channels are kept. Where the timestamps say that nothing was sent, there is silence; also before a sound that
    begins later than the file. With `sampling.seconds` only so much from the start is decoded.

    Args:
        span: the part wanted, seconds from the first frame where there are pictures, else from the file's beginning.

    Raises:
        MediaError: no_audio_stream, audio_limits, bad_range, or unreadable_audio for everything else.
    """
    with refusing(Reason.unreadable_audio, origin), opened(data, name) as container:
        stream = pick(container, "audio", origin)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        _check_header(rate, channels, limits, origin)
        promised = promised_seconds(container, stream)
        begin, end = _window(sampling, span, rate)
        if end is None and begin is None and promised is not None and promised > limits.audio_seconds:
            raise _limit(origin, f"{promised:.0f} seconds", f"at most {limits.audio_seconds:.0f}")
        most = limits.audio_values // channels
        if end is None:
            most = min(most, int(limits.audio_seconds * rate))
        track = Track(rate, channels, begin, end, most)
        _fill(track, container, stream, name, limits, origin)
        _check_range(track, span, origin)
        if span == (None, None) and not track.done:
            _check_length(track.head / rate, promised, name, data, limits, origin)
        wave = track.stack()
        _check_values(wave, origin)
        sound = resample(torch.from_numpy(wave), rate, sampling.rate).clamp_(-1.0, 1.0)
    return Media("audio", sound.contiguous(), rate=sampling.rate, origin=origin)


def _window(sampling: Sampling, span: Span, rate: int) -> tuple[int | None, int | None]:
    """The samples wanted, first and behind the last; none for no bound."""
    begin = None if span[0] is None else round(span[0] * rate)
    end = None if span[1] is None else round(span[1] * rate)
    if sampling.seconds is not None:
        short = (begin or 0) + max(1, round(sampling.seconds * rate))
        end = short if end is None else min(end, short)
    if end is not None:
        end = max(end, (begin or 0) + 1)
    return begin, end


def _check_range(track: Track, span: Span, origin: str) -> None:
    """Refuse a clip that the sound does not hold; an end behind the sound's by rounding is that of the sound."""
    have, (start, end) = track.head / track.rate, span
    late = (start or 0) >= have or (end is not None and not track.done and end - have > SLACK)
    if span != (None, None) and late:
        raise outside(origin, span, have)


def _check_header(rate: int, channels: int, limits: Limits, origin: str) -> None:
    if not rate or not channels:
        raise MediaError(Reason.unreadable_audio, f"{origin}: {rate} Hz, {channels} channels", "both above 0")
    if not limits.min_rate <= rate <= limits.max_rate:
        raise _limit(origin, f"{rate} Hz", f"{limits.min_rate} to {limits.max_rate} Hz")
    if channels > limits.channels:
        raise _limit(origin, f"{channels} channels", f"at most {limits.channels}")


def _fill(track: Track, container: Any, stream: Any, name: str, limits: Limits, origin: str) -> None:
    """Decode what the track wants. Raises MediaError."""
    failed, packets = 0, 0
    deadline = time.monotonic() + limits.wall_seconds
    context = stream.codec_context
    context.thread_count = 1
    zero = _zero(container, stream) if name in _STAMPED else None
    early = -1.0 if track.begin is None or zero is None else track.begin / track.rate - _PREROLL
    for packet in container.demux(stream):
        packets += 1
        if zero is not None and packet.size and (over := _ends(packet, zero)) < early:
            track.skip(round(over * track.rate))
            continue
        try:
            frames = context.decode(packet if packet.size else None)
        except av.error.InvalidDataError:
            failed += 1
            continue
        for frame in frames:
            block = _block(frame, track.channels)
            if frame.sample_rate != track.rate or block.shape[0] != track.channels:
                raise MediaError(
                    Reason.unreadable_audio,
                    f"{origin}: {frame.sample_rate} Hz and {block.shape[0]} channels after {track.rate} Hz and "
                    f"{track.channels}",
                    "one rate and layout throughout",
                )
            stamped = zero is not None and frame.time is not None
            try:
                track.put(block, round((frame.time - zero) * track.rate) if stamped else None)
            except Full as error:
                raise _limit(origin, f"more than {track.most} samples in {track.channels} channels", "fewer") from error
        if track.done or not packet.size:
            break
        if time.monotonic() > deadline:
            raise _limit(origin, f"decoding took more than {limits.wall_seconds:g} seconds", "less")
    if failed > (1 - limits.complete) * packets or not track.head:
        raise MediaError(
            Reason.unreadable_audio, f"{origin}: {failed} of {packets} packets fail, {track.head} samples",
            "a whole file",
        )  # fmt: skip


def _zero(container: Any, stream: Any) -> float:
    """The timestamp that counts as 0, seconds: that of the first frame beside the sound, else of the file's beginning.

    A sound begins at once where its times do not: in OGG, where they only count what the encoder put in front, and in
    a piece of a longer stream.
    """
    pictures = [s for s in container.streams if s.type == "video" and not is_cover(s) and s.start_time is not None]
    if pictures:
        return min(float(one.start_time * one.time_base) for one in pictures)
    first = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    apart = container.format.name == "ogg" or abs(first) <= LATE or first > _ABRUPT
    return first if apart else 0.0


def _ends(packet: Any, zero: float) -> float:
    """When a packet's sound is over, seconds; endless where it has no time."""
    if packet.pts is None:
        return math.inf
    return float((packet.pts + (packet.duration or 0)) * packet.time_base) - zero


def _block(frame: Any, channels: int) -> np.ndarray:
    """float32 [channels,samples] of one decoded frame."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    kind = frame.format.name.removesuffix("p")
    if kind in _SCALES:
        middle, scale = _SCALES[kind]
        values = (values.astype(np.float64) - middle) / scale if kind != "s16" else values * np.float32(1 / scale)
    return values.astype(np.float32, copy=False)


def _check_length(have: float, promised: float | None, name: str, data: bytes, limits: Limits, origin: str) -> None:
    """Compare with the header. MP3 gives only estimates, OGG the place of its last page: those promise nothing."""
    if name == "wav" and len(data) >= 8:
        size = struct.unpack_from("<I", data, 4)[0]
        if data[:4] == b"RIFF" and 0 < size < 0xFFFFFF00 and len(data) < limits.complete * (size + 8):
            raise MediaError(Reason.unreadable_audio, f"{origin}: {len(data)} bytes of {size + 8}", "a whole file")
    if name in ("mp3", "ogg") or promised is None:
        return
    if have < limits.complete * promised:
        raise MediaError(
            Reason.unreadable_audio,
            f"{origin}: {have:.2f} seconds of {promised:.2f}",
            f"at least {limits.complete:.0%} of what the header promises",
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


def _limit(origin: str, seen: str, expected: str) -> MediaError:
    return MediaError(Reason.audio_limits, f"{origin}: {seen}", expected)
