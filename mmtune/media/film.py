"""Pictures to a video that holds them without loss: the frames of a clip that was taken apart.

JPEG frames of one size are put into Matroska as they are, byte for byte. Other pictures are decoded and kept with FFV1,
which gives their pixels back exactly; transparency is laid on white, as everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av

from mmtune.errors import MediaError, Reason
from mmtune.media import _formats
from mmtune.media.base import Limits, Sampling, load, refusing
from mmtune.types import MediaRef

_UNIT = 1000
"""Matroska counts milliseconds."""


def join(frames: Sequence[bytes], rate: float, origin: str, limits: Limits | None = None) -> bytes:
    """A Matroska file of some pictures, frame i at i / rate seconds.

    Args:
        frames: encoded pictures, at least one, all of one size.
        rate: frames a second.
        origin: for messages.

    Raises:
        MediaError: a frame that is no picture or cannot be decoded, or frames of several sizes.
    """
    if not frames or not 0 < rate <= 1000:
        raise MediaError(Reason.unreadable_video, f"{origin}: {len(frames)} frames at {rate} a second", "at least one")
    with refusing(Reason.unreadable_video, origin):
        plain = all(_formats.detect(frame) == "jpeg" for frame in frames)
        return _copied(frames, rate, origin) if plain else _encoded(frames, rate, origin, limits)


def _copied(frames: Sequence[bytes], rate: float, origin: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        width, height = _one_size([_jpeg_size(frame, origin) for frame in frames], origin)
        stream = container.add_mux_stream(
            "mjpeg", rate=Fraction(rate).limit_denominator(1000), width=width, height=height
        )
        for number, frame in enumerate(frames):
            packet = av.Packet(frame)
            packet.pts = packet.dts = round(number * _UNIT / rate)
            packet.duration = round(_UNIT / rate)
            packet.time_base = Fraction(1, _UNIT)
            packet.is_keyframe = True
            packet.stream = stream
            container.mux(packet)
    return out.getvalue()


def _encoded(frames: Sequence[bytes], rate: float, origin: str, limits: Limits | None) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = None
        for number, frame in enumerate(frames):
            media = load(MediaRef("image", frame, f"{origin}, frame {number}"), Sampling(), limits)
            pixels = media.data[0].permute(1, 2, 0).contiguous().numpy()
            if stream is None:
                height, width = pixels.shape[:2]
                stream = container.add_stream("ffv1", rate=Fraction(rate).limit_denominator(1000))
                stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
                stream.codec_context.thread_count = 1  # the same bytes on every machine
            _one_size([(stream.width, stream.height), (pixels.shape[1], pixels.shape[0])], origin)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="bgr0")))
        assert stream is not None
        container.mux(stream.encode())
    return out.getvalue()


def _one_size(sizes: Sequence[tuple[int, int]], origin: str) -> tuple[int, int]:
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(set(sizes))[:4])
        raise MediaError(Reason.unreadable_video, f"{origin}: frames of several sizes, {listed}", "frames of one size")
    return sizes[0]


def _jpeg_size(frame: bytes, origin: str) -> tuple[int, int]:
    """Width and height from the header."""
    from PIL import Image

    with Image.open(io.BytesIO(frame), formats=("JPEG",)) as picture:
        return picture.size
