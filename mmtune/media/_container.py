"""The one place where a container is opened: from bytes, with closed lists of formats, protocols and codecs.

A demuxer left to guess opens a playlist (ffconcat, HLS, DASH, SDP) given as bytes, and with it other files and
addresses. So the demuxer is named by us from the first bytes, its allow list is set, and the list of protocols is
empty: three walls, each of which holds alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any

import av
from av.container import InputContainer

from mmtune.errors import MediaError, Reason
from mmtune.media._watch import Watch, Watched

_DEMUXERS = {
    "mp4": "mov,mp4,m4a,3gp,3g2,mj2",
    "m4a": "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska": "matroska,webm",
    "avi": "avi",
    "gif": "gif",
    "wav": "wav",
    "flac": "flac",
    "ogg": "ogg",
    "mp3": "mp3",
}
"""Format of `_formats` to the names of its demuxer."""

VIDEO_CODECS = frozenset(
    {
        "h264",
        "hevc",
        "vp8",
        "libvpx",
        "vp9",
        "libvpx-vp9",
        "av1",
        "libdav1d",
        "mpeg4",
        "msmpeg4",
        "msmpeg4v2",
        "mpeg1video",
        "mpeg2video",
        "mjpeg",
        "h263",
        "gif",
        "ffv1",
        "rawvideo",
        "prores",
        "png",
    }
)
AUDIO_CODECS = frozenset(
    {
        "aac",
        "mp3",
        "mp3float",
        "mp2",
        "mp2float",
        "opus",
        "libopus",
        "vorbis",
        "libvorbis",
        "flac",
        "alac",
        "ac3",
        "eac3",
        "adpcm_ms",
        "adpcm_ima_wav",
    }
)
"""Decoders in use; "pcm_" of any kind comes on top. The library has several hundred, most of them rarely tested."""


_STREAMS = 256
"""Streams of a container, fonts and covers among them. Each takes a library up to a quarter of a megabyte."""


def walls(demuxers: str) -> dict[str, str]:
    """Options that keep a container from opening anything but the bytes given."""
    return {"format_whitelist": demuxers, "protocol_whitelist": ""}


@cache
def _probing() -> str:
    """Decoders that may be tried while a file is opened. AV1 is not: one packet of it can hold thousands of pictures,
    which are counted only when the packets are there."""
    sounds = {name for name in av.codecs_available if name.startswith("pcm_")} | AUDIO_CODECS
    return ",".join(sorted((VIDEO_CODECS | sounds) - {"av1", "libdav1d"}))


@contextmanager
def opened(data: bytes, name: str | None, watch: Watch) -> Iterator[InputContainer]:
    """Open encoded bytes of format `name`; None lets the library choose among the allowed demuxers.

    Args:
        watch: refuses, while the library reads, what takes too much time or memory.
    """
    allowed = _DEMUXERS[name] if name else ",".join(dict.fromkeys(_DEMUXERS.values()))
    try:
        container = av.open(
            Watched(data, watch),
            format=allowed.split(",")[0] if name else None,
            container_options=walls(allowed) | {"max_streams": str(_STREAMS), "codec_whitelist": _probing()},
            metadata_errors="replace",
            timeout=watch.seconds or None,
        )
    except MemoryError as error:  # also of a library that may make no more streams
        raise watch.no_memory(f"at most {_STREAMS} streams, and memory for them") from error
    try:
        yield container
    finally:
        container.close()


def pick(container: InputContainer, kind: str, origin: str) -> Any:
    """The stream to decode: the best of its kind as the library ranks them, cover pictures left out.

    Raises:
        MediaError: no_video_stream or no_audio_stream; unreadable_* when its codec is not in use here.
    """
    streams = [s for s in container.streams if s.type == kind]
    if kind == "video":
        streams = [s for s in streams if not is_cover(s)]
    if not streams:
        others = ", ".join(sorted({s.type or "unknown" for s in container.streams})) or "nothing"
        raise MediaError(
            Reason(f"no_{kind}_stream"),
            f"{origin}: holds {others}",
            f"{'an audio' if kind == 'audio' else 'a video'} stream",
        )
    best = container.streams.best(kind)
    stream = best if best is not None and best in streams else streams[0]
    context = stream.codec_context
    codec = context.name if context is not None else "unknown"
    allowed = VIDEO_CODECS if kind == "video" else AUDIO_CODECS
    if codec not in allowed and not (kind == "audio" and codec.startswith("pcm_")):
        raise MediaError(
            Reason(f"unreadable_{kind}"),
            f"{origin}: {kind} in codec {codec}",
            f"one of {', '.join(sorted(allowed))}" + (", pcm" if kind == "audio" else ""),
            "convert the file",
        )
    return stream


def promised_seconds(container: InputContainer, stream: Any) -> float | None:
    """The length that the header promises for one stream, seconds; None when it promises nothing usable."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    text = next((v for k, v in stream.metadata.items() if k.upper() == "DURATION"), "")
    try:
        hours, minutes, seconds = text.split(":")
        written = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if math.isfinite(written) and written > 0:
            return written
    except ValueError:
        pass
    if container.duration and container.duration > 0 and len(container.streams) == 1:
        return float(Fraction(container.duration, av.time_base))
    return None


def is_cover(stream: Any) -> bool:
    """True for a picture attached to a sound or film."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def is_whole_riff(data: bytes) -> bool:
    """Whether the file, which may be several RIFF chunks in a row, is as long as it says."""
    at = 0
    while data[at : at + 4] == b"RIFF":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return 0 < at <= len(data)


def is_whole_matroska(data: bytes) -> bool:
    """Whether the file says how long it is, and is no shorter."""
    at = 0
    for _ in range(8):
        first = data[at : at + 1]
        if not first or not first[0]:
            return False
        name = data[at : at + 9 - first[0].bit_length()]
        at += len(name)
        width = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
        if not width:
            return False
        size = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
        at += width
        if name == b"\x18\x53\x80\x67":
            return size != (1 << 7 * width) - 1 and at + size <= len(data)
        at += size
    return False
