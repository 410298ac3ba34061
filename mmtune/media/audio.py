"""Sound from bytes to float32 [channels,samples] in -1..1: WAV, FLAC, OGG, MP3, M4A, or the sound of a video.

Three states stay apart: sound is there; the file has none (no_audio_stream); the file has some that cannot be read
(unreadable_audio, audio_limits). Silence is never put in the place of a failure.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import av
import numpy as np
import torch

from mmtune.errors import MediaError, Reason
from mmtune.media._container import opened, pick, promised_seconds
from mmtune.media._resample import resample
from mmtune.media.base import Limits, Sampling, refusing
from mmtune.types import Media

_PEAK = 16.0
"""Lossy codecs overshoot 1 and are clipped there; values far above it are stored on another scale and refused."""

_SCALES = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}
"""Sample format to (middle, range): value = (stored - middle) / range."""


def decode(data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str) -> Media:
    """`data` of format `name` to Media with float32 [channels,samples] in -1..1 at `sampling.rate`.

    All channels are kept. With `sampling.seconds` only so much from the start is decoded.

    Raises:
        MediaError: no_audio_stream, audio_limits, or unreadable_audio for everything else.
    """
    with refusing(Reason.unreadable_audio, origin), opened(data, name) as container:
        stream = pick(container, "audio", origin)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        _check_header(rate, channels, limits, origin)
        promised = promised_seconds(container, stream)
        if sampling.seconds is None and promised is not None and promised > limits.audio_seconds:
            raise _limit(origin, f"{promised:.0f} seconds", f"at most {limits.audio_seconds:.0f}")
        most = None if sampling.seconds is None else max(1, round(sampling.seconds * rate))
        wave = _samples(container, stream, rate, channels, most, limits, origin)
        if most is None or wave.shape[1] < most:
            _check_length(wave.shape[1] / rate, promised, name, data, limits, origin)
        _check_values(wave, origin)
        sound = resample(torch.from_numpy(wave[:, :most]), rate, sampling.rate).clamp_(-1.0, 1.0)
    return Media("audio", sound.contiguous(), rate=sampling.rate, origin=origin)


def _check_header(rate: int, channels: int, limits: Limits, origin: str) -> None:
    if not rate or not channels:
        raise MediaError(Reason.unreadable_audio, f"{origin}: {rate} Hz, {channels} channels", "both above 0")
    if not limits.min_rate <= rate <= limits.max_rate:
        raise _limit(origin, f"{rate} Hz", f"{limits.min_rate} to {limits.max_rate} Hz")
    if channels > limits.channels:
        raise _limit(origin, f"{channels} channels", f"at most {limits.channels}")


def _samples(
    container: Any, stream: Any, rate: int, channels: int, most: int | None, limits: Limits, origin: str
) -> np.ndarray:
    """float32 [channels,samples], at least `most` of them when there are so many."""
    blocks, count, failed, packets = list[np.ndarray](), 0, 0, 0
    longest = limits.audio_values // channels
    if most is None:
        longest = min(longest, int(limits.audio_seconds * rate))
    deadline = time.monotonic() + limits.wall_seconds
    stream.codec_context.thread_count = 1
    for packet in container.demux(stream):
        packets += 1
        try:
            frames = stream.codec_context.decode(packet if packet.size else None)
        except av.error.InvalidDataError:
            failed += 1
            continue
        for frame in frames:
            block = _block(frame, channels)
            if frame.sample_rate != rate or block.shape[0] != channels:
                raise MediaError(
                    Reason.unreadable_audio,
                    f"{origin}: {frame.sample_rate} Hz and {block.shape[0]} channels after {rate} Hz and {channels}",
                    "one rate and layout throughout",
                )
            blocks.append(block)
            count += block.shape[1]
        if most is not None and count >= most:
            break
        if count > longest:
            raise _limit(origin, f"more than {longest} samples in {channels} channels", "fewer")
        if time.monotonic() > deadline:
            raise _limit(origin, f"decoding took more than {limits.wall_seconds:g} seconds", "less")
        if not packet.size:
            break
    if failed > (1 - limits.complete) * packets or not count:
        raise MediaError(
            Reason.unreadable_audio, f"{origin}: {failed} of {packets} packets fail, {count} samples", "a whole file"
        )
    return np.concatenate(blocks, axis=1)


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
