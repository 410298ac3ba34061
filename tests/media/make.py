"""Small media made on the spot. Every video frame carries its own number as black and white blocks."""

from __future__ import annotations

import io
import struct
import wave
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from mmtune.errors import Reason
from mmtune.media._watch import Watch
from mmtune.media.base import Limits, Sampling, load
from mmtune.types import Media, MediaRef

BITS = 8
FORMATS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


def get(kind: str, data: bytes, limits: Limits | None = None, **sampling) -> Media:
    return load(MediaRef(kind, data, "item"), Sampling(**sampling), limits)


def clip(kind: str, data: bytes, start: float | None = None, end: float | None = None, **sampling) -> Media:
    return load(MediaRef(kind, data, "item", start, end), Sampling(**sampling))


def watch(limits: Limits | None = None) -> Watch:
    return Watch(limits or Limits(), Reason.video_limits, "item")


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """uint8 [height,width,3], smooth enough for lossy formats, asymmetric."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    blue = 127 + 120 * np.sin((x + y + seed) / 9)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def image(pixels: np.ndarray | Image.Image, form: str = "PNG", **how) -> bytes:
    store = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(store, form, **how)
    return store.getvalue()


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """A grey frame whose upper half shows `index` in BITS blocks; a red corner at the lower left tells orientation."""
    frame = np.full((height, width, 3), 100, np.uint8)
    block = width // BITS
    for bit in range(BITS):
        frame[: height // 2, bit * block : (bit + 1) * block] = 255 * (index >> bit & 1)
    frame[-height // 4 :, : width // 4] = (220, 20, 20)
    return frame


def numbers(media: Media) -> list[int]:
    """The number shown by each frame of [F,3,height,width]."""
    width, height = media.data.shape[3], media.data.shape[2]
    block = width // BITS
    row = media.data[:, 1, height // 4].float()
    read = [row[:, bit * block + block // 2] > 127 for bit in range(BITS)]
    return [sum(int(bit[i]) << b for b, bit in enumerate(read)) for i in range(len(row))]


def video(
    count: int = 16,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    form: str = "mp4",
    rate: int = 8,
    pixel: str = "yuv420p",
    times: list[int] | None = None,
    unit: Fraction = Fraction(1, 1000),
    sound: bool = False,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> bytes:
    """`times`: presentation times in `unit`, for a variable rate; else one frame each 1/rate seconds."""
    store = io.BytesIO()
    with av.open(store, "w", format=form, container_options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel
        if times is not None:
            stream.codec_context.time_base = unit
        voice = container.add_stream("aac", rate=16000) if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index, width, height), format="rgb24")
            frame.time_base = unit if times is not None else Fraction(1, rate)
            frame.pts = times[index] if times is not None else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            tone = av.AudioFrame.from_ndarray(sine(16000, count / rate)[None], format="fltp", layout="mono")
            tone.sample_rate = 16000
            fifo = av.AudioFifo()
            fifo.write(tone)
            while block := fifo.read(1024, partial=True):
                container.mux(voice.encode(block))
            container.mux(voice.encode(None))
    return store.getvalue()


def rewrite(data: bytes, box: bytes, at: int, *values: int) -> bytes:
    """Overwrite signed 32-bit fields of the first MP4 box named `box`, `at` bytes after its name."""
    place = data.index(box) + len(box) + at
    patch = struct.pack(f">{len(values)}i", *values)
    return data[:place] + patch + data[place + len(patch) :]


def rotated(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The same MP4 with display matrix (a b; c d) in its track header."""
    one = 1 << 16
    return rewrite(data, b"tkhd", 40, a * one, b * one, 0, c * one, d * one, 0)


def sine(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    """float32 [samples]"""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def wav(values: np.ndarray, rate: int = 16000, width: int = 2) -> bytes:
    """Integer WAV of float [samples] or [channels,samples] in -1..1."""
    values = np.atleast_2d(values)
    store = io.BytesIO()
    with wave.open(store, "wb") as file:
        file.setnchannels(values.shape[0])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.round(values.T * 32767).astype("<i2").tobytes())
    return store.getvalue()


def float_wav(values: np.ndarray, rate: int = 16000, channels: int = 1) -> bytes:
    """IEEE float WAV, header written by hand so that any rate and channel count can be claimed."""
    body = np.asarray(values, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, channels, rate, rate * 4 * channels & 0xFFFFFFFF, 4 * channels & 0xFFFF, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def sound(codec: str, form: str, rate: int = 16000, seconds: float = 1.0, sample: str = "fltp") -> bytes:
    """A mono 440 Hz tone in any codec."""
    store = io.BytesIO()
    with av.open(store, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        values = sine(rate, seconds)[None]
        if sample.startswith("s16"):
            values = np.round(values * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(values, format=sample, layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        while block := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return store.getvalue()
